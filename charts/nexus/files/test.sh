# Run by `helm test` in a pod that asked for a sidecar, with no more than a shell, sleep and the wget of busybox or GNU.

# How often it is asked, every 2 s, until the route is in the sidecar: kubelet may bring it 90 s late.
tries=${TEST_TRIES:-75}

fail() {
  echo "FAILED: $*"
  exit 1
}

# Sends the request through the sidecar, with further options of wget; sets status, code and detail of the first answer.
ask() {
  if [ -n "$TEST_TENANT" ]; then
    set -- "$@" --header "X-Nexus-Tenant: $TEST_TENANT"
  fi
  said=$(wget -S -O /dev/null --header "X-Nexus-Provider: $TEST_PROVIDER" "$@" "$NEXUS_SIDECAR_URL$TEST_PATH" 2>&1)
  field "$said" "HTTP/1.[01] "
  status=${found%% *}
  field "$said" "[Xx]-[Nn]exus-[Ee]rror: "
  code=$found
  field "$said" "[Gg]rpc-[Mm]essage: "
  detail=${found#"$code: "}
}

# Sets found to the rest of the first line of $1 that has $2.
field() {
  found=${1#*$2}
  if [ "$found" = "$1" ]; then
    found=
  fi
  found=${found%%
*}
  found=${found%"$(printf '\r')"}
}

if [ -n "$TEST_OBSTACLE" ]; then
  fail "$TEST_OBSTACLE"
fi
if [ -z "$NEXUS_SIDECAR_URL" ]; then
  fail "this pod has the annotation nexus.io/inject and no sidecar; look whether the operator's MutatingWebhookConfiguration is there"
fi
echo "The pod was given a sidecar."

while :; do
  status=
  if [ -n "$TEST_CONNECTION" ]; then
    ask
    case $status in
      2??)
        echo "The upstream answered the authenticated request with $status."
        echo "PASSED"
        exit 0
        ;;
    esac
    plain=$status
  fi
  # busybox shows no headers of an error. To who speaks gRPC the sidecar's own errors are answers, told by headers.
  ask --header "Content-Type: application/grpc"
  case $code in
    connection_unknown)
      if [ -z "$TEST_CONNECTION" ]; then
        echo "The pod's agent reached the sidecar, and the control plane answered that it has no such connection."
        echo "PASSED, without an authenticated request: set test.connectionId and test.upstream.url to try one."
        exit 0
      fi
      ;;
    provider_unknown | not_ready | broker_unavailable | overloaded)
      # Only the route is worth a long wait.
      case $code in
        b* | o*) [ "$tries" -le 5 ] || tries=5 ;;
      esac
      if [ "$tries" -gt 0 ]; then
        tries=$((tries - 1))
        sleep 2
        continue
      fi
      ;;
    "")
      if [ -z "$status" ]; then
        fail "the sidecar does not answer: $said"
      fi
      fail "the request was sent, and the upstream answered it with ${plain:-$status}; see test.path and the connection"
      ;;
  esac
  fail "the sidecar answered $code: $detail"
done
