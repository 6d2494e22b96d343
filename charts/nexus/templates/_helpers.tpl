{{- define "nexus.fullname" -}}
{{ .Values.fullnameOverride | default "nexus-operator" }}
{{- end }}

{{- define "nexus.selectorLabels" -}}
app.kubernetes.io/name: nexus-operator
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end }}

{{- define "nexus.labels" -}}
{{ include "nexus.selectorLabels" . }}
app.kubernetes.io/part-of: nexus
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ .Chart.Name }}-{{ .Chart.Version | replace "+" "_" }}
{{- with .Values.commonLabels }}
{{ toYaml . }}
{{- end }}
{{- end }}

{{- define "nexus.serviceAccountName" -}}
{{ .Values.serviceAccount.name | default (include "nexus.fullname" .) }}
{{- end }}

{{/* The operator as the API server sees it. */}}
{{- define "nexus.username" -}}
system:serviceaccount:{{ .Release.Namespace }}:{{ include "nexus.serviceAccountName" . }}
{{- end }}

{{/* An image's repository with its registry; takes the image's values. */}}
{{- define "nexus.repository" -}}
{{ with .registry }}{{ trimSuffix "/" . }}/{{ end }}{{ required "image.repository and sidecar.image.repository must not be empty" .repository }}
{{- end }}

{{/* A whole image reference; takes a list of an image's values and the version that stands in for tag and digest. */}}
{{- define "nexus.image" -}}
{{- $image := index . 0 -}}
{{- $tag := $image.tag | default (ternary "" (index . 1) (not (empty $image.digest))) -}}
{{ include "nexus.repository" $image }}{{ with $tag }}:{{ . }}{{ end }}{{ with $image.digest }}@{{ . }}{{ end }}
{{- end }}

{{/* Namespaces where nothing is injected: what the cluster needs to start, and the operator's own. */}}
{{- define "nexus.excludedNamespaces" -}}
{{ concat (list "kube-system" "kube-node-lease" .Release.Namespace) .Values.webhook.excludeNamespaces | uniq | toJson }}
{{- end }}

{{/* The audience of the token that only sidecars mount; fixed, the operator and the relay know no other. */}}
{{- define "nexus.audience" -}}
nexus-gateway
{{- end }}

{{- define "nexus.certificate" -}}
{{ include "nexus.fullname" . }}-cert-manager
{{- end }}

{{/* Annotation by which cert-manager keeps a caBundle. */}}
{{- define "nexus.caInjection" -}}
{{- if .Values.certificates.certManager.enabled }}
cert-manager.io/inject-ca-from: {{ .Release.Namespace }}/{{ include "nexus.certificate" . }}
{{- end }}
{{- end }}

{{/* Binds a policy everywhere; takes a list of the root, the policy's name and the action. */}}
{{- define "nexus.policyBinding" -}}
{{- $root := index . 0 -}}
apiVersion: admissionregistration.k8s.io/v1
kind: ValidatingAdmissionPolicyBinding
metadata:
  name: {{ index . 1 }}
  labels:
    {{- include "nexus.labels" $root | nindent 4 }}
spec:
  policyName: {{ index . 1 }}
  validationActions: [{{ index . 2 }}]
{{- end }}
