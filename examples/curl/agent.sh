#!/bin/sh
# Calls an API without holding a credential.
# Run it beside a sidecar:  ./agent.sh [PROVIDER] [TENANT]
set -eu

sidecar=${NEXUS_SIDECAR_URL:-http://localhost:8080}
provider=${1:-bearer}
tenant=${2:-}

# Two headers.
curl --silent --show-error --fail-with-body \
  --header "X-Nexus-Provider: $provider" ${tenant:+--header "X-Nexus-Tenant: $tenant"} \
  "$sidecar/hello?from=headers"
echo

# Only a base URL.
curl --silent --show-error --fail-with-body \
  "$sidecar/via/$provider${tenant:+@$tenant}/hello?from=base-url"
echo
