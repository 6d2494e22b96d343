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

{{/* An image's repository with its registry; takes a list of the root and the image's values. */}}
{{- define "nexus.repository" -}}
{{- $image := index . 1 -}}
{{ with (index . 0).Values.global.imageRegistry | default $image.registry }}{{ trimSuffix "/" . }}/{{ end }}{{ $image.repository }}
{{- end }}

{{/* A whole image reference; takes a list of the root and the image's values. The chart's version stands in for tag and digest. */}}
{{- define "nexus.image" -}}
{{- $image := index . 1 -}}
{{- $tag := $image.tag | default (ternary "" (index . 0).Chart.AppVersion (not (empty $image.digest))) -}}
{{ include "nexus.repository" . }}{{ with $tag }}:{{ . }}{{ end }}{{ with $image.digest }}@{{ . }}{{ end }}
{{- end }}

{{/* Namespaces where nothing is injected: what the cluster needs to start, and the operator's own. */}}
{{- define "nexus.excludedNamespaces" -}}
{{ concat (list "kube-system" "kube-node-lease" .Release.Namespace) (.Values.webhook.excludeNamespaces | default list) | uniq | toJson }}
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

{{/* Sidecars go on after the chart is uninstalled, and so must what guards them. */}}
{{- define "nexus.keptPolicy" -}}
{{- if .Values.policies.keep -}}
annotations:
  helm.sh/resource-policy: keep
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
  {{- if eq (index . 2) "Deny" }}
  {{- include "nexus.keptPolicy" $root | nindent 2 }}
  {{- end }}
spec:
  policyName: {{ index . 1 }}
  validationActions: [{{ index . 2 }}]
{{- end }}

{{/* Name of what `helm test` makes. */}}
{{- define "nexus.testName" -}}
{{ include "nexus.fullname" . | trunc 53 | trimSuffix "-" }}-helm-test
{{- end }}

{{/* Namespace that it tests in. */}}
{{- define "nexus.testNamespace" -}}
{{ .Values.test.namespace | default (include "nexus.testName" .) }}
{{- end }}

{{/* Says when a hook of the test is made, from low to high, and when it goes; takes the weight and the policies. */}}
{{- define "nexus.testHook" -}}
helm.sh/hook: test
helm.sh/hook-weight: {{ index . 0 | quote }}
helm.sh/hook-delete-policy: {{ index . 1 }}
{{- end }}

{{- define "nexus.testLabels" -}}
{{ include "nexus.labels" . }}
app.kubernetes.io/component: test
{{- end }}

{{/* Why a pod of the test's own namespace cannot start, if that is so. */}}
{{- define "nexus.testObstacle" -}}
{{- $missing := list -}}
{{- with .Values.sidecar -}}
{{- if has .auth (list "api-key" "client-certificate") -}}
{{- $missing = append $missing (printf "the Secret %s" .authSecret) -}}
{{- end -}}
{{- with .caConfigMap -}}
{{- $missing = append $missing (printf "the ConfigMap %s" .) -}}
{{- end -}}
{{- end -}}
{{- if and $missing (not .Values.test.namespace) -}}
sidecars need {{ join " and " $missing }} in the namespace of their pod, which a namespace made for the test has not; set test.namespace to one that has
{{- end -}}
{{- end }}
