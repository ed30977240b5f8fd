{{- define "goatherd.name" -}}
{{- default .Chart.Name .Values.nameOverride | trunc 40 | trimSuffix "-" -}}
{{- end -}}

{{/* The name is short enough for a pod's name, which also contains the component and the StatefulSet's ordinal. */}}
{{- define "goatherd.fullname" -}}
{{- $name := include "goatherd.name" . -}}
{{- if .Values.fullnameOverride -}}
{{- .Values.fullnameOverride | trunc 40 | trimSuffix "-" -}}
{{- else if contains $name .Release.Name -}}
{{- .Release.Name | trunc 40 | trimSuffix "-" -}}
{{- else -}}
{{- printf "%s-%s" .Release.Name $name | trunc 40 | trimSuffix "-" -}}
{{- end -}}
{{- end -}}

{{/* The templates below take a dict of `root` (the top context) and `component` (server, controller, page). */}}
{{- define "goatherd.selector" -}}
app.kubernetes.io/name: {{ include "goatherd.name" .root }}
app.kubernetes.io/instance: {{ .root.Release.Name }}
app.kubernetes.io/component: {{ .component }}
{{- end -}}

{{- define "goatherd.labels" -}}
{{ include "goatherd.selector" . }}
app.kubernetes.io/version: {{ .root.Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .root.Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .root.Chart.Name .root.Chart.Version | replace "+" "_" }}
{{- end -}}

{{- define "goatherd.serviceAccount" -}}
{{- $account := (index .root.Values .component).serviceAccount -}}
{{- if $account.create -}}
{{- default (printf "%s-%s" (include "goatherd.fullname" .root) .component) $account.name -}}
{{- else -}}
{{- default "default" $account.name -}}
{{- end -}}
{{- end -}}

{{/* The store's URI with {org} replaced, for RBAC. The containers get the unchanged URI, and the organization. */}}
{{- define "goatherd.store" -}}
{{- $uri := .root.Values.store.uri -}}
{{- if eq .component "server" -}}{{- $uri = default $uri .root.Values.server.storeUri -}}{{- end -}}
{{- $uri | replace "{org}" (default "localhost" .root.Values.store.organization) -}}
{{- end -}}

{{/* NAMESPACE/NAME of a k8s:// URI; empty for every other store. */}}
{{- define "goatherd.secret" -}}
{{- if hasPrefix "k8s://" . -}}
{{- . | trimPrefix "k8s://" | regexFind "^[^?]+" -}}
{{- end -}}
{{- end -}}

{{/* k8s:// URIs of this cluster, with spaces between them: the store's, and those of the section [stores] of `config`. */}}
{{- define "goatherd.secretUris" -}}
{{- $uris := list -}}
{{- with include "goatherd.secret" (include "goatherd.store" .) -}}{{- $uris = append $uris (printf "k8s://%s" .) -}}{{- end -}}
{{- $organization := default "localhost" .root.Values.store.organization -}}
{{- range regexFindAll "provider\\s*=\\s*[\"']k8s://[^\"']+" (index .root.Values .component).config -1 -}}
{{- if not (regexMatch "[?&](kubeconfig|context)=" .) -}}
{{- $uris = append $uris (regexFind "k8s://[^?]+" . | replace "{org}" $organization) -}}
{{- end -}}
{{- end -}}
{{- uniq $uris | join " " -}}
{{- end -}}

{{- define "goatherd.lease" -}}
{{- if .Values.server.unmodified.lease -}}
{{- .Values.server.unmodified.lease | replace "{org}" (default "localhost" .Values.store.organization) -}}
{{- else -}}
{{- $secret := include "goatherd.secret" (include "goatherd.store" (dict "root" . "component" "server")) -}}
{{- if $secret -}}{{- printf "k8s://%s-lease" $secret -}}{{- end -}}
{{- end -}}
{{- end -}}

{{- define "goatherd.nodes" -}}
{{- $nodes := (index .root.Values .component).nodes -}}
{{- if $nodes -}}
{{- join "," $nodes -}}
{{- else if ne .root.Values.server.kind "none" -}}
{{- printf "k8s-service://%s/%s-nodes:http" .root.Release.Namespace (include "goatherd.fullname" .root) -}}
{{- else -}}
{{- fail (printf "%s.nodes must list the servers, because server.kind is none" .component) -}}
{{- end -}}
{{- end -}}

{{/* Only a pod that calls the API server, or signs in to Vault, gets a token. Cloud identities bring a volume of their own.
The URI of an anchor in Vault may be in the identity only, where the chart cannot see it: hence mountToken. */}}
{{- define "goatherd.needsToken" -}}
{{- $own := index .root.Values .component -}}
{{- $named := list (include "goatherd.store" .) $own.config (toYaml (list $own.extraArgs $own.extraEnv .root.Values.store.env)) -}}
{{- if ne .component "server" -}}
{{- $named = append $named (include "goatherd.nodes" .) -}}
{{- else if ne .root.Values.server.kind "goatherd" -}}
{{- $named = append $named (include "goatherd.lease" .root) -}}
{{- end -}}
{{- or (regexMatch "\\b(k8s|k8s-service|vault|openbao|transit)://" (join "\n" $named)) $own.serviceAccount.mountToken -}}
{{- end -}}

{{- define "goatherd.imageName" -}}
{{- if .digest -}}
{{- printf "%s@%s" .repository .digest -}}
{{- else -}}
{{- printf "%s:%s" .repository .tag -}}
{{- end -}}
{{- end -}}

{{- define "goatherd.image" -}}
{{- $tag := default .Chart.AppVersion .Values.image.tag -}}
{{- include "goatherd.imageName" (dict "repository" .Values.image.repository "tag" $tag "digest" .Values.image.digest) -}}
{{- end -}}

{{- define "goatherd.unmodifiedImage" -}}
{{- with .Values.server.unmodified.image -}}
{{- $repository := required "server.unmodified.image.repository must name the image of your GoatDB server" .repository -}}
{{- if not .digest -}}{{- $_ := required "server.unmodified.image needs a digest, or a tag" .tag -}}{{- end -}}
{{- include "goatherd.imageName" (dict "repository" $repository "tag" .tag "digest" .digest) -}}
{{- end -}}
{{- end -}}

{{/* The first lines of every pod's specification. */}}
{{- define "goatherd.pod" -}}
{{- $own := index .root.Values .component -}}
serviceAccountName: {{ include "goatherd.serviceAccount" . }}
automountServiceAccountToken: {{ include "goatherd.needsToken" . }}
# Else a Service named goatherd-web would set GOATHERD_WEB_PORT, an option of Goatherd.
enableServiceLinks: false
{{- with .root.Values.imagePullSecrets }}
imagePullSecrets:
  {{- toYaml . | nindent 2 }}
{{- end }}
securityContext:
  {{- toYaml .root.Values.podSecurityContext | nindent 2 }}
{{- with $own.priorityClassName }}
priorityClassName: {{ . }}
{{- end }}
{{- with $own.nodeSelector }}
nodeSelector:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with $own.tolerations }}
tolerations:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with $own.affinity }}
affinity:
  {{- toYaml . | nindent 2 }}
{{- end }}
topologySpreadConstraints:
{{- if $own.topologySpreadConstraints }}
  {{- toYaml $own.topologySpreadConstraints | nindent 2 }}
{{- else }}
{{- range $key := list "kubernetes.io/hostname" "topology.kubernetes.io/zone" }}
  - maxSkew: 1
    topologyKey: {{ $key }}
    whenUnsatisfiable: ScheduleAnyway
    labelSelector:
      matchLabels:
        {{- include "goatherd.selector" $ | nindent 8 }}
{{- end }}
{{- end }}
{{- end -}}

{{- define "goatherd.podMetadata" -}}
{{- $own := index .root.Values .component -}}
# Without the chart's version, so that an upgrade restarts pods only if it changes them.
labels:
  {{- include "goatherd.selector" . | nindent 2 }}
  {{- with $own.podLabels }}
  {{- toYaml . | nindent 2 }}
  {{- end }}
annotations:
  kubectl.kubernetes.io/default-container: {{ .container }}
  {{- if $own.config }}
  checksum/config: {{ sha256sum $own.config }}
  {{- end }}
  {{- if and .port (not .root.Values.serviceMonitor.enabled) }}
  prometheus.io/scrape: "true"
  prometheus.io/path: {{ .path }}
  prometheus.io/port: {{ .port | quote }}
  {{- end }}
  {{- with $own.podAnnotations }}
  {{- toYaml . | nindent 2 }}
  {{- end }}
{{- end -}}

{{/* Goatherd follows the store without restarts. A restart of all pods at once would bypass the restart lease. */}}
{{- define "goatherd.noRestarts" -}}
annotations:
  reloader.stakater.com/auto: "false"
{{- end -}}

{{/* The environment of a Goatherd container. */}}
{{- define "goatherd.env" -}}
{{- $own := index .root.Values .component -}}
{{- $uri := .root.Values.store.uri -}}
{{- if eq .component "server" -}}{{- $uri = default $uri .root.Values.server.storeUri -}}{{- end -}}
{{- if $uri }}
- name: GOATHERD_PROVIDER
  value: {{ $uri | quote }}
{{- else if not (regexMatch "(?m)^\\s*\\[\\s*stores\\s*[.\\]]" $own.config) }}
{{- fail (printf "store.uri must name the store, or %s.config must have a section [stores]" .component) }}
{{- end }}
{{- with .root.Values.store.organization }}
- name: GOATHERD_ORG
  value: {{ . | quote }}
{{- end }}
{{- if $own.config }}
- name: GOATHERD_CONFIG
  value: /etc/goatherd/goatherd.toml
{{- end }}
{{- with .root.Values.store.env }}
{{ toYaml . }}
{{- end }}
{{- with $own.extraEnv }}
{{ toYaml . }}
{{- end }}
{{- end -}}

{{/* A StatefulSet with two volumes or mounts of one name is accepted, but none of its pods can be created. */}}
{{- define "goatherd.checkVolumes" -}}
{{- $isFile := or (hasPrefix "file://" .Values.store.uri) (hasPrefix "file://" .Values.server.storeUri) -}}
{{- if and $isFile (not .Values.store.volumeMounts) -}}
{{- fail "store.volumes and store.volumeMounts must mount the directory of the file:// store" -}}
{{- end -}}
{{- $names := list "audit" "config" "data" "identity" "tls" "tmp" -}}
{{- $paths := list "/etc/goatherd" "/etc/goatherd-page" "/srv/goatdb" "/tmp" "/var/log/goatherd" -}}
{{- if has .Values.server.kind (list "agent" "sidecar") -}}
{{- $names = concat $names (list "keys" "server-tmp") -}}
{{- $paths = append $paths "/keys" -}}
{{- end -}}
{{- range .Values.store.volumes -}}
{{- if has .name $names -}}
{{- fail (printf "store.volumes: %s is the name of a volume of the chart; choose another name" .name) -}}
{{- end -}}
{{- end -}}
{{- range .Values.store.volumeMounts -}}
{{- if has .mountPath $paths -}}
{{- fail (printf "store.volumeMounts: the chart mounts a volume of its own at %s; choose another path" .mountPath) -}}
{{- end -}}
{{- end -}}
{{- end -}}

{{- define "goatherd.volumeMounts" -}}
{{- $own := index .root.Values .component -}}
- name: tmp
  mountPath: /tmp
{{- if $own.config }}
- name: config
  mountPath: /etc/goatherd
  readOnly: true
{{- end }}
{{- if and (eq .component "server") (hasPrefix "k8s-volume://" .root.Values.server.storeUri) }}
- name: identity
  mountPath: {{ trimPrefix "k8s-volume://" .root.Values.server.storeUri | quote }}
  readOnly: true
{{- end }}
{{- with .root.Values.store.volumeMounts }}
{{ toYaml . }}
{{- end }}
{{- end -}}

{{- define "goatherd.volumes" -}}
{{- $own := index .root.Values .component -}}
{{- include "goatherd.checkVolumes" .root -}}
- name: tmp
  emptyDir:
    sizeLimit: 64Mi
{{- if $own.config }}
- name: config
  configMap:
    name: {{ printf "%s-%s" (include "goatherd.fullname" .root) .component }}
{{- end }}
{{- if and (eq .component "server") (hasPrefix "k8s-volume://" .root.Values.server.storeUri) }}
- name: identity
  secret:
    secretName: {{ required "server.volumeSecret must name the Secret that server.storeUri reads" .root.Values.server.volumeSecret }}
    defaultMode: 0440
{{- end }}
{{- with .root.Values.store.volumes }}
{{ toYaml . }}
{{- end }}
{{- end -}}

{{- define "goatherd.preStop" -}}
{{- if .Values.server.preStopSeconds }}
lifecycle:
  preStop:
    sleep:
      seconds: {{ .Values.server.preStopSeconds }}
{{- end }}
{{- end -}}
