#!/usr/bin/env bash
# Runs kubectl's commands, by every kubectl of this machine, against the cluster that KUBECONFIG names, and writes a
# table of what worked:
#
#     hack/kubectl-table.sh TABLE.md [VERSION...]     (newest: the newest there is)
#
# The kubectls are the one on the PATH and what lies beside it as kubectl.1.NN; with apt-get, Debian's kubernetes-client
# is downloaded and unpacked (not installed) as one more. The image busybox:latest must be on the node
# (hack/make-test-images.sh DIR && skiff image load DIR/busybox.tar). Exit status 1 when anything failed.
set -uo pipefail
table=${1:?usage: kubectl-table.sh TABLE.md [VERSION...]}
shift
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
image=busybox:latest

# --- the kubectls ---

version_of() { "$1" version --client -o json 2>/dev/null | sed -n 's/.*"gitVersion": "v\([0-9]*\.[0-9]*\.[0-9]*\).*/\1/p'; }

debian() {
  command -v apt-get >/dev/null 2>&1 || return 0
  (cd "$work" && apt-get download kubernetes-client && dpkg -x kubernetes-client_*.deb debian) >/dev/null 2>&1
  echo "$work/debian/usr/bin/kubectl"
}

declare -A binary
find_kubectls() {
  local main candidate version
  main=$(readlink -f "$(command -v kubectl)")
  for candidate in "$main" "$(dirname "$main")"/kubectl.1.* ${KUBECTL_DEBIAN-$(debian)}; do
    [ -x "$candidate" ] || continue
    version=$(version_of "$candidate")
    [ -n "$version" ] && binary[${version%.*}]=$candidate
  done
}

# --- one check ---

# run NAME PATTERN COMMAND...: passes if the command succeeds and prints what the pattern says.
run() { attempts=1 judge 0 "$@"; }
# soon: the same, tried again for as long as a busy machine may need.
soon() { attempts=60 judge 0 "$@"; }
# fails: the command must fail, and say so.
fails() { attempts=1 judge 1 "$@"; }

# What a kubectl says that does not have the command or the flag.
unknown='^(error|Error): unknown (command|flag|shorthand)|flags cannot be placed before plugin name'
unknown+='|unrecognized condition: "jsonpath'
# What one says that asks for an API which Kubernetes 1.33 does not serve either: batch/v1beta1 and policy/v1beta1 (removed
# in 1.25), alpha ephemeral containers (1.22), authentication.k8s.io before v1 (never on by default).
unknown+='|failed to create cronjob: the server could not find the requested resource|version "policy/v1beta1"$'
unknown+='|EphemeralContainers in version "v1" cannot be handled as a Pod|the selfsubjectreviews API is not enabled'

# after NAME CHECK...: a check of what an earlier one made; none where that was none.
after() {
  if grep -qxF "$1"$'\tnone' "$out/results"; then
    printf '%s\tnone\n' "$3" >>"$out/results"
  else
    "${@:2}"
  fi
}

judge() {
  local wanted=$1 name=$2 pattern=$3 said code verdict=fail
  shift 3
  for ((try = 0; try < attempts; try++)); do
    [ $try -gt 0 ] && sleep 1
    said=$("$@" 2>&1 </dev/null)
    code=$?
    if grep -qE -- "$unknown" <<<"$said"; then
      verdict=none
      break
    fi
    if [ $((code != 0)) = "$wanted" ] && grep -qE -- "$pattern" <<<"$said"; then
      verdict=pass
      break
    fi
  done
  printf '%s\t%s\n' "$name" "$verdict" >>"$out/results"
  [ $verdict != fail ] || { echo "--- $v: $name: exit status $code, wanted /$pattern/"; head -c 2000 <<<"$said"; echo; } | tee -a "$out/failures" >&2
}

# --- what kubectl is asked to do ---

k() { timeout 90 "$kubectl" --cache-dir "$out/cache" -n "$ns" "$@"; }
fed() { local text=$1; shift; k "$@" <<<"$text"; }
edited() { KUBE_EDITOR="sed -i $1" k edit "${@:2}"; }
# with_server COMMAND...: kubectl port-forward or proxy on a free port, and one request to it.
with_server() {
  local path=$1 port tries=0
  shift
  : >"$out/server"
  timeout 60 "$kubectl" --cache-dir "$out/cache" -n "$ns" "$@" >"$out/server" 2>&1 &
  local pid=$!
  until port=$(grep -oE '127\.0\.0\.1:[0-9]+' "$out/server" | head -n 1) && [ -n "$port" ]; do
    [ $((tries += 1)) -lt 200 ] || break
    sleep 0.1
  done
  curl -sS --noproxy '*' --max-time 20 "http://$port$path"
  kill $pid 2>/dev/null
  wait $pid 2>/dev/null
  cat "$out/server"
}
copied() {
  echo carried >"$out/there" && k cp "$out/there" "$1:/tmp/there" && k cp "$1:/tmp/there" "$out/back" && cat "$out/back"
}
# at_terminal COMMAND: with a terminal, a line typed into it.
at_terminal() { (sleep 3; echo "echo typed-\$((40+2))"; sleep 1; echo exit) | timeout 60 script -qec "$1" /dev/null; }
watched() { timeout 5 "$kubectl" --cache-dir "$out/cache" -n "$ns" "$@"; [ $? = 124 ]; }
config_map() { printf 'apiVersion: v1\nkind: ConfigMap\nmetadata: {name: %s}\ndata: {k: "%s"}\n' "$1" "$2"; }

DEPLOYMENT='apiVersion: apps/v1
kind: Deployment
metadata: {name: app, labels: {app: app}}
spec:
  replicas: 1
  selector: {matchLabels: {app: app}}
  template:
    metadata: {labels: {app: app}}
    spec:
      terminationGracePeriodSeconds: 0
      containers:
      - name: web
        image: busybox:latest
        imagePullPolicy: Never
        command: [sh, -c, "mkdir -p /www; echo hello >/www/index.html; httpd -p 8080 -h /www; while :; do echo tick; sleep 1; done"]
        ports: [{containerPort: 8080, name: http}]
      - {name: side, image: "busybox:latest", imagePullPolicy: Never, command: [sh, -c, "echo side; exec sleep 3600"]}'
POLICY='apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: np}
spec: {podSelector: {matchLabels: {app: app}}, ingress: [{ports: [{port: 80}]}]}'

creates() {
  run 'create namespace' 'created' k create namespace "$ns"
  soon 'get serviceaccount' 'default' k get serviceaccount default
  run 'create deployment' 'deployment.apps/made created' k create deployment made --image=$image --replicas=0 -- sleep 3600
  run 'create --dry-run=client -o yaml' 'kind: Deployment' k create deployment d --image=$image --dry-run=client -o yaml
  run 'create --dry-run=server' 'server dry run' k create deployment d --image=$image --dry-run=server
  run 'create job' 'job.batch/once created' k create job once --image=$image -- true
  run 'create cronjob' 'cronjob.batch/daily created' k create cronjob daily --image=$image '--schedule=0 0 * * *' -- true
  after 'create cronjob' run 'create job --from=cronjob' 'job.batch/now created' k create job now --from=cronjob/daily
  run 'create configmap' 'configmap/cm created' k create configmap cm --from-literal=a=b
  run 'create secret generic' 'secret/s created' k create secret generic s --from-literal=a=b
  run 'create secret docker-registry' 'secret/reg created' \
    k create secret docker-registry reg --docker-server=r.example --docker-username=u --docker-password=p
  run 'create secret tls' 'secret/tls created' k create secret tls tls --cert="$work/tls.crt" --key="$work/tls.key"
  run 'create service clusterip' 'service/ci created' k create service clusterip ci --tcp=80:8080
  run 'create service nodeport' 'service/np created' k create service nodeport np --tcp=80:8080
  run 'create service loadbalancer' 'service/lb created' k create service loadbalancer lb --tcp=80:8080
  run 'create service externalname' 'service/en created' k create service externalname en --external-name=a.example
  run 'create ingress' 'ingress.networking.k8s.io/ing created' k create ingress ing --class=none '--rule=a.example/*=ci:80'
  run 'create role' 'role.rbac.authorization.k8s.io/r created' k create role r --verb=get --resource=pods
  run 'create rolebinding' 'rolebinding.rbac.authorization.k8s.io/rb created' \
    k create rolebinding rb --role=r --serviceaccount="$ns:sa"
  run 'create clusterrole' 'created' k create clusterrole "$ns" --verb=get --resource=nodes
  run 'create clusterrolebinding' 'created' k create clusterrolebinding "$ns" --clusterrole="$ns" --serviceaccount="$ns:sa"
  run 'create serviceaccount' 'serviceaccount/sa created' k create serviceaccount sa
  run 'create token' '^eyJ' k create token sa
  run 'create quota' 'resourcequota/q created' k create quota q --hard=secrets=50
  run 'create priorityclass' 'created' k create priorityclass "$ns" --value=7
  run 'create poddisruptionbudget' 'poddisruptionbudget.policy/pdb created' \
    k create poddisruptionbudget pdb --selector=app=app --min-available=0
  run 'create -f' 'configmap/filed created' fed "$(config_map filed 1)" create -f -
  fails 'create -f: exists already' 'Error from server \(AlreadyExists\).*"filed" already exists' fed "$(config_map filed 1)" create -f -
  fails 'create -f: unknown field' 'unknown field "?(ConfigMap\.)?dat|unknown field "dat"' \
    fed "$(config_map x 1 | sed 's/^data/dat/')" create -f -
  fails 'create: invalid name' 'is invalid: metadata.name: Invalid value: "Not_A_Name"' k create configmap Not_A_Name
}

applies() {
  run 'apply' 'configmap/cs created' fed "$(config_map cs 1)" apply -f -
  run 'apply again' 'configmap/cs unchanged' fed "$(config_map cs 1)" apply -f -
  run 'apply a change' 'configmap/cs configured' fed "$(config_map cs 2)" apply -f -
  run 'apply --dry-run=server' 'server dry run' fed "$(config_map cs 3)" apply --dry-run=server -f -
  run 'apply view-last-applied' 'k: "2"' k apply view-last-applied configmap cs
  run 'apply --server-side' 'serverside-applied' fed "$(config_map ss 1)" apply --server-side -f -
  fails 'apply --server-side: conflict' 'conflict with "kubectl"' \
    fed "$(config_map ss 2)" apply --server-side --field-manager=other -f -
  run 'apply --server-side --force-conflicts' 'serverside-applied' \
    fed "$(config_map ss 2)" apply --server-side --force-conflicts --field-manager=other -f -
  run 'apply a Deployment' 'deployment.apps/app created' fed "$DEPLOYMENT" apply -f -
  fails 'diff' '^\+ +k: "?9' fed "$(config_map cs 9)" diff -f -
  run 'diff: none' '^$' fed "$(config_map cs 2)" diff -f -
  run 'replace' 'configmap/filed replaced' fed "$(config_map filed 5)" replace -f -
  run 'replace --force' 'replaced' fed "$(config_map filed 6)" replace --force -f -
  run 'patch (strategic)' 'patched' k patch deployment app -p '{"spec":{"template":{"spec":{"containers":[{"name":"side","env":[{"name":"A","value":"b"}]}]}}}}'
  run 'patch --type=merge' 'patched' k patch configmap cs --type=merge -p '{"data":{"m":"n"}}'
  run 'patch --type=json' 'patched' k patch configmap cs --type=json -p '[{"op":"remove","path":"/data/m"}]'
  run 'edit' 'configmap/cs edited' edited 's/k:.*/k:\ edited/' configmap cs
  run 'edit: took effect' '^edited$' k get configmap cs -o 'jsonpath={.data.k}'
  run 'label' 'labeled' k label configmap cs tier=front
  run 'label: removed' '(un)?labeled' k label configmap cs tier-
  run 'annotate' 'annotated?' k annotate configmap cs note=hi
}

reads() {
  run 'rollout status' 'successfully rolled out' k rollout status deployment/app --timeout=80s
  run 'get' '^NAME +READY +STATUS +RESTARTS +AGE' k get pods
  run 'get -o wide' 'NODE +NOMINATED NODE' k get pods -o wide
  run 'get -o yaml' 'kind: List' k get configmaps,secrets -o yaml
  run 'get -o json' '"kind": "ConfigMap"' k get configmap cs -o json
  run 'get -o name' '^configmap/cs$' k get configmaps -o name
  run 'get -o jsonpath' '^cm ' k get configmaps cm cs -o 'jsonpath={.items[*].metadata.name}'
  run 'get -o custom-columns' '^NAME +K' k get configmaps -o custom-columns=NAME:.metadata.name,K:.data.k
  run 'get -o go-template' '^cm$' k get configmap cm -o 'go-template={{.metadata.name}}'
  run 'get -A' '^kube-system +coredns' k get deployments -A
  run 'get -l' '^app-' k get pods -l app=app
  run 'get --show-labels' 'app=app' k get pods --show-labels
  run 'get --field-selector' '^app-' k get pods --field-selector=status.phase=Running
  run 'get --sort-by' '^cm ' k get configmaps --sort-by=.metadata.name
  run 'get --chunk-size' 'kube-root-ca.crt' k get configmaps --chunk-size=2
  run 'get -w' '^cs ' watched get configmaps -w
  run 'get --watch-only' '' watched get configmaps --watch-only
  run 'get all' 'deployment.apps/app' k get all
  run 'get --raw' '^ok$' k get --raw /readyz
  fails 'get: not found' 'Error from server \(NotFound\): pods "none" not found' k get pod none
  fails 'get: no such kind' "the server doesn't have a resource type \"widgets\"" k get widgets
  run 'wait' 'condition met' k wait --for=condition=Available deployment/app --timeout=60s
  run 'wait --for=jsonpath' 'condition met' k wait '--for=jsonpath={.status.readyReplicas}=1' deployment/app --timeout=60s
  run 'wait for a Job' 'job.batch/once condition met' k wait --for=condition=complete job/once --timeout=60s
  run 'describe pod' 'Started container web|Started: ' k describe pod -l app=app
  run 'describe deployment' 'ScalingReplicaSet' k describe deployment app
  run 'describe service' '^Endpoints:' k describe service ci
  run 'describe node' '^Allocated resources' k describe nodes
  run 'describe namespace' 'Resource Quotas' k describe namespace "$ns"
  run 'describe ingress' 'a.example' k describe ingress ing
  run 'describe networkpolicy' 'PodSelector: +app=app' describe_policy
  run 'describe configmap' '^cs|^Name: +cs' k describe configmap cs
  run 'describe secret' 'a: +1 bytes' k describe secret s
  run 'describe serviceaccount, role, rolebinding' 'rb' k describe serviceaccount/sa role/r rolebinding/rb
  after 'create cronjob' run 'describe job, cronjob' 'daily' k describe job/once cronjob/daily
  run 'describe quota' 'secrets' k describe quota q
  after 'create poddisruptionbudget' run 'describe pdb' 'pdb' k describe pdb pdb
  run 'describe storageclass, priorityclass' 'Value: +7' k describe priorityclass "$ns"
  run 'explain' 'Ingress|ingress' k explain ingress.spec.rules
  run 'explain --recursive' 'pathType' k explain ingress.spec.rules --recursive
  run 'explain --api-version' 'HorizontalPodAutoscaler' k explain hpa --api-version=autoscaling/v1
  run 'api-resources' 'networkpolicies +netpol +networking.k8s.io/v1' k api-resources
  run 'api-resources --verbs -o name' '^deployments.apps$' k api-resources --verbs=list --namespaced -o name
  run 'api-versions' '^networking.k8s.io/v1$' k api-versions
  run 'cluster-info' 'Kubernetes (control plane|master).* is running at' k cluster-info
  run 'version' 'Server Version' k version
  run 'auth can-i' '^yes$' k auth can-i create pods
  fails 'auth can-i: no' '^no' k auth can-i create pods --as="system:serviceaccount:$ns:sa"
  run 'auth can-i --list' 'selfsubjectaccessreviews' k auth can-i --list
  run 'auth whoami' 'Username' k auth whoami
  run 'auth reconcile' 'reconciled' fed "$(k create role rr --verb=list --resource=pods --dry-run=client -o yaml)" auth reconcile -f -
  run 'events' 'Scheduled|Started|Created' k events
  run 'get events' 'Scheduled' k get events
}
describe_policy() { fed "$POLICY" apply -f - && k describe networkpolicy np; }

changes() {
  run 'expose' 'service/app exposed' k expose deployment app --port=80 --target-port=http
  run 'scale' 'scaled' k scale deployment made --replicas=1
  run 'scale --current-replicas' 'scaled' k scale deployment made --current-replicas=1 --replicas=0
  run 'autoscale' 'autoscaled' k autoscale deployment made --max=3 --cpu-percent=80
  run 'describe hpa' 'Max replicas: +3' k describe hpa made
  run 'set image' 'image updated' k set image deployment/made busybox=busybox:other
  run 'set env' 'env updated' k set env deployment/made A=b
  run 'set resources' 'resource requirements updated' k set resources deployment made --limits=cpu=1
  run 'set selector' 'selector updated' k set selector service ci app=app
  run 'set serviceaccount' 'serviceaccount updated' k set serviceaccount deployment made sa
  run 'set subject' 'subjects updated' k set subject rolebinding rb --user=jane
  soon 'rollout history' '^2 ' k rollout history deployment/made
  run 'rollout history --revision' 'busybox' k rollout history deployment/made --revision=1
  run 'rollout undo' 'rolled back' k rollout undo deployment/made
  run 'rollout pause' 'paused' k rollout pause deployment/made
  run 'rollout resume' 'resumed' k rollout resume deployment/made
  run 'rollout restart' 'restarted' k rollout restart deployment/made
  run 'run' 'pod/one created' k run one --image=$image --image-pull-policy=Never --restart=Never -- sh -c 'echo done; sleep 3600'
  run 'wait --for=condition=Ready' 'condition met' k wait --for=condition=Ready pod/one --timeout=80s
}

streams() {
  run 'logs' '^side$' k logs deployment/app -c side
  run 'logs --all-containers --prefix' 'side' k logs -l app=app --all-containers --prefix
  run 'logs --tail' '^tick$' k logs deployment/app -c web --tail=1
  run 'logs --since --timestamps' '^[0-9]{4}-.* tick$' k logs deployment/app -c web --since=60s --timestamps
  run 'logs -f' '^tick$' watched logs -f deployment/app -c web
  run 'logs --limit-bytes' '^ti$' k logs deployment/app -c web --limit-bytes=2
  fails 'logs --previous' 'previous terminated container "?side"? in pod' k logs deployment/app -c side --previous
  run 'exec' '^hi$' k exec one -- echo hi
  run 'exec -i' '^fed in$' fed 'fed in' exec -i one -- cat
  fails 'exec: exit status' 'exit code 7' k exec one -- sh -c 'exit 7'
  run 'exec deployment' '^hello$' k exec deployment/app -c web -- cat /www/index.html
  run 'exec -it' 'typed-42' at_terminal "$kubectl --cache-dir $out/cache -n $ns exec -it one -- sh"
  run 'attach' 'tick' watched attach deployment/app -c web
  run 'run -i --rm' '^from stdin' fed 'from stdin' run two --rm -i --quiet --image=$image --image-pull-policy=Never --restart=Never -- cat
  run 'cp' '^carried$' copied one
  run 'port-forward' '^hello$' with_server / port-forward deployment/app :8080
  run 'port-forward service' '^hello$' with_server / port-forward service/app :80
  run 'proxy' '"gitVersion"' with_server /version proxy --port=0
  run 'proxy to a Service' '^hello$' with_server "/api/v1/namespaces/$ns/services/app:80/proxy/" proxy --port=0
  run 'debug' 'typed-42' at_terminal "$kubectl --cache-dir $out/cache -n $ns debug -it one --image=$image --image-pull-policy=Never -- sh"
  run 'debug --copy-to' '' k debug one --copy-to=copy --image=$image --image-pull-policy=Never --share-processes -- sleep 3600
  soon 'top node' 'CPU\(cores\)' k top node
  soon 'top pod' '^app-' k top pod
  soon 'top pod --containers' ' web ' k top pod --containers
}

nodes() {
  local node
  node=$(k get nodes -o 'jsonpath={.items[0].metadata.name}')
  # kubectl writes the list of taints whole, so that of two at the same time one would be lost.
  exec 9>"$work/taints"
  flock 9
  run 'taint' 'tainted|modified' k taint node "$node" "test/$v=x:PreferNoSchedule"
  run 'taint: removed' 'untainted|modified' k taint node "$node" "test/$v-"
  exec 9>&-
  # Cordoning would stop the others who run at the same time.
  run 'cordon --dry-run, drain --dry-run' 'drained \((server )?dry run' k drain "$node" --dry-run=client --ignore-daemonsets --force --delete-emptydir-data
  run 'certificate approve' 'approved' approved
  run 'config view, current-context' 'clusters' k config view
}
approved() {
  fed "apiVersion: certificates.k8s.io/v1
kind: CertificateSigningRequest
metadata: {name: $ns}
spec: {request: $(base64 -w0 <"$work/tls.csr"), signerName: kubernetes.io/kube-apiserver-client, usages: [client auth]}" create -f - &&
    k certificate approve "$ns"
}

# Its shell is process 1, which no SIGTERM ends: the Pod stays for all of its grace.
awaited_delete() { k delete pod "$1" --wait=false --grace-period=5 && k wait --for=delete "pod/$1" --timeout=60s; }

deletes() {
  run 'delete' 'configmap "cm" deleted' k delete configmap cm
  run 'delete --cascade=orphan' 'deleted' k delete deployment made --cascade=orphan
  run 'delete -l' 'deleted' k delete configmap,replicaset -l 'app in (made,cs)'
  run 'wait --for=delete' 'condition met' awaited_delete one
  run 'delete --grace-period=0 --force' 'force deleted' k delete pod copy --grace-period=0 --force
  run 'delete --cascade=foreground' 'deployment.apps "app" deleted' k delete deployment app --cascade=foreground --timeout=60s
  run 'delete --ignore-not-found' '^$' k delete pod none --ignore-not-found
  run 'delete -f' 'deleted' fed "$(config_map cs 1)" delete -f -
  run 'delete --all' 'secret "s" deleted' k delete secret --all
  run 'delete clusterrole, clusterrolebinding, priorityclass, csr' 'deleted' \
    k delete clusterrole/"$ns" clusterrolebinding/"$ns" priorityclass/"$ns" csr/"$ns"
  run 'delete namespace' 'deleted' k delete namespace "$ns" --timeout=80s
}

one_version() {
  v=$1 ns=kubectl-${1//./-} kubectl=${binary[$1]} out=$work/$1
  mkdir -p "$out"
  creates
  applies
  reads
  changes
  streams
  nodes
  deletes
  k delete namespace "$ns" --ignore-not-found --wait=false >/dev/null 2>&1
}

# --- the table ---

mark() { case $1 in pass) echo yes ;; fail) echo '**no**' ;; none) echo '·' ;; *) echo '?' ;; esac; }

write_table() {
  local name v verdict
  echo '# kubectl against skiff'
  echo
  echo 'Made by `make kubectl` (`hack/kubectl-table.sh` says what each row runs and expects): yes, **no** (not there yet), or'
  echo '`·` where that kubectl has no such command or flag, or asks for an API that Kubernetes 1.33 does not serve either.'
  echo
  echo "| command |$(printf ' %s |' "${versions[@]}")"
  echo "|---|$(printf -- '---|%.0s' "${versions[@]}")"
  cut -f1 "$work/${versions[-1]}/results" | while IFS= read -r name; do
    printf '| %s |' "$name"
    for v in "${versions[@]}"; do
      verdict=$(awk -F'\t' -v n="$name" '$1 == n {print $2}' "$work/$v/results")
      printf ' %s |' "$(mark "$verdict")"
    done
    echo
  done
}

find_kubectls
versions=("$@")
mapfile -t known < <(printf '%s\n' "${!binary[@]}" | sort -V)
[ ${#versions[@]} -gt 0 ] || versions=("${known[@]}")
[ "${versions[0]}" != newest ] || versions=("${known[-1]}")
openssl req -x509 -newkey rsa:2048 -nodes -days 1 -subj /CN=table -keyout "$work/tls.key" -out "$work/tls.crt" 2>/dev/null
openssl req -new -key "$work/tls.key" -subj /CN=table -out "$work/tls.csr" 2>/dev/null
for v in "${versions[@]}"; do
  [ -n "${binary[$v]-}" ] || { echo "there is no kubectl $v on this machine" >&2; exit 2; }
  while [ "$(jobs -rp | wc -l)" -ge "${PARALLEL:-2}" ]; do wait -n; done
  one_version "$v" &
done
wait
write_table >"$table"
cat "$work"/*/failures 2>/dev/null >"$work/failures"
[ ! -s "$work/failures" ]
