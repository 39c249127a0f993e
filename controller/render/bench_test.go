package render

import (
	"bytes"
	"encoding/json"
	"fmt"
	"runtime"
	"syscall"
	"testing"

	"helm.sh/helm/v3/pkg/chart"
	"helm.sh/helm/v3/pkg/chartutil"
	"helm.sh/helm/v3/pkg/engine"
	"helm.sh/helm/v3/pkg/releaseutil"

	"shoal.dev/shoal/controller/api/v1alpha1"
)

// benchChart is written as charts usually are: names and labels by include, values with defaults, blocks by toYaml. It has
// four objects for each of n components. .Values.host, which the benchmarks vary, stands in one object of four.
func benchChart(n int) []v1alpha1.BundleResource {
	helpers := `{{- define "app.name" -}}{{- default .Chart.Name .Values.nameOverride | trunc 63 | trimSuffix "-" }}{{- end }}
{{- define "app.fullname" -}}
{{- if .Values.fullnameOverride }}{{- .Values.fullnameOverride | trunc 63 | trimSuffix "-" }}{{- else }}
{{- $name := default .Chart.Name .Values.nameOverride }}
{{- if contains $name .Release.Name }}{{- .Release.Name | trunc 63 | trimSuffix "-" }}{{- else }}{{- printf "%s-%s" .Release.Name $name | trunc 63 | trimSuffix "-" }}{{- end }}
{{- end }}
{{- end }}
{{- define "app.chart" -}}{{- printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" | trunc 63 | trimSuffix "-" }}{{- end }}
{{- define "app.selector" -}}
app.kubernetes.io/name: {{ include "app.name" . }}
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end }}
{{- define "app.labels" -}}
helm.sh/chart: {{ include "app.chart" . }}
{{ include "app.selector" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
{{- end }}
`
	values := `nameOverride: ""
fullnameOverride: ""
host: localhost
replicas: 2
image: {repository: registry.example.com/app, tag: "", pullPolicy: IfNotPresent}
service: {type: ClusterIP, port: 80}
resources: {limits: {cpu: 100m, memory: 128Mi}, requests: {cpu: 10m, memory: 64Mi}}
podAnnotations: {prometheus.io/scrape: "true", prometheus.io/port: "8080"}
nodeSelector: {}
tolerations: []
ingress: {enabled: true, className: nginx}
`
	rs := []v1alpha1.BundleResource{
		{Name: "Chart.yaml", Content: "apiVersion: v2\nname: app\nversion: 1.2.3\nappVersion: \"4.5.6\"\n"},
		{Name: "values.yaml", Content: values},
		{Name: "templates/_helpers.tpl", Content: helpers},
	}
	for i := range n {
		meta := fmt.Sprintf("metadata:\n  name: {{ include \"app.fullname\" . }}-%d\n  labels:\n    {{- include \"app.labels\" . | nindent 4 }}\n", i)
		add := func(kind, text string) {
			rs = append(rs, v1alpha1.BundleResource{Name: fmt.Sprintf("templates/%s-%d.yaml", kind, i), Content: text})
		}
		add("deployment", "apiVersion: apps/v1\nkind: Deployment\n"+meta+`spec:
  replicas: {{ .Values.replicas }}
  selector:
    matchLabels:
      {{- include "app.selector" . | nindent 6 }}
  template:
    metadata:
      {{- with .Values.podAnnotations }}
      annotations:
        {{- toYaml . | nindent 8 }}
      {{- end }}
      labels:
        {{- include "app.selector" . | nindent 8 }}
    spec:
      containers:
        - name: {{ .Chart.Name }}
          image: "{{ .Values.image.repository }}:{{ .Values.image.tag | default .Chart.AppVersion }}"
          imagePullPolicy: {{ .Values.image.pullPolicy }}
          ports:
            - name: http
              containerPort: 8080
              protocol: TCP
          livenessProbe:
            httpGet: {path: /healthz, port: http}
          readinessProbe:
            httpGet: {path: /ready, port: http}
          resources:
            {{- toYaml .Values.resources | nindent 12 }}
      {{- with .Values.nodeSelector }}
      nodeSelector:
        {{- toYaml . | nindent 8 }}
      {{- end }}
      {{- with .Values.tolerations }}
      tolerations:
        {{- toYaml . | nindent 8 }}
      {{- end }}
`)
		add("service", "apiVersion: v1\nkind: Service\n"+meta+`spec:
  type: {{ .Values.service.type }}
  ports:
    - port: {{ .Values.service.port }}
      targetPort: http
      protocol: TCP
      name: http
  selector:
    {{- include "app.selector" . | nindent 4 }}
`)
		add("configmap", "apiVersion: v1\nkind: ConfigMap\n"+meta+`data:
  app.properties: |
    server.port=8080
    log.level={{ .Values.logLevel | default "info" }}
    workers={{ mul .Values.replicas 2 }}
`)
		add("ingress", "{{- if .Values.ingress.enabled }}\napiVersion: networking.k8s.io/v1\nkind: Ingress\n"+meta+`spec:
  ingressClassName: {{ .Values.ingress.className }}
  rules:
    - host: {{ .Values.host | quote }}
      http:
        paths:
          - path: /
            pathType: Prefix
            backend:
              service:
                name: {{ include "app.fullname" . }}
                port:
                  number: {{ .Values.service.port }}
{{- end }}
`)
	}
	return rs
}

// some changes what one object of four shows, every changes all of them.
func some(i int) v1alpha1.Values {
	return v1alpha1.Values{"host": fmt.Sprintf("site-%d.example.com", i)}
}
func every(i int) v1alpha1.Values {
	return v1alpha1.Values{"host": fmt.Sprintf("site-%d.example.com", i), "fullnameOverride": fmt.Sprintf("app-%d", i)}
}

// BenchmarkRender compares, in one run, on a chart of 100 objects and on one of 4:
//
//	helm-engine    Helm's engine with values coalesced, on a chart that is parsed already; its result are texts
//	helm-template  what helm template does: engine, documents cut, sorted and their heads read
//	shoal          our rendering, as the hub calls it; its result are canonical, ordered, hashed objects
//
// with values that differ each time (in one object of four, or in all) and with repeated ones.
func BenchmarkRender(b *testing.B) {
	for _, size := range []int{25, 1} {
		rs := benchChart(size)
		files, err := decode(rs)
		if err != nil {
			b.Fatal(err)
		}
		c, err := loadChart(files)
		if err != nil {
			b.Fatal(err)
		}
		key := ResourcesKey(rs)
		input := func(v v1alpha1.Values) Input {
			return Input{Name: "demo", Resources: rs, ResourcesKey: key, Options: v1alpha1.BundleOptions{Helm: &v1alpha1.HelmOptions{Values: v}}}
		}
		for _, change := range []struct {
			name   string
			values func(int) v1alpha1.Values
		}{{"some", some}, {"every", every}} {
			at := 0 // never the same values twice
			next := func() v1alpha1.Values { at++; return change.values(at) }
			name := func(who string) string { return fmt.Sprintf("%dobjects/distinct-%s/%s", 4*size, change.name, who) }
			b.Run(name("helm-engine"), func(b *testing.B) {
				defer processor(b)()
				for b.Loop() {
					helmEngine(b, c, next())
				}
			})
			b.Run(name("helm-template"), func(b *testing.B) {
				defer processor(b)()
				for b.Loop() {
					helmTemplate(b, c, next())
				}
			})
			b.Run(name("shoal"), func(b *testing.B) {
				cache := benchCache(b)
				defer processor(b)()
				for b.Loop() {
					if _, err := cache.Render(input(next())); err != nil {
						b.Fatal(err)
					}
				}
			})
		}
		b.Run(fmt.Sprintf("%dobjects/repeated/shoal", 4*size), func(b *testing.B) {
			cache := benchCache(b)
			in := input(some(0))
			for b.Loop() {
				if _, err := cache.Render(in); err != nil {
					b.Fatal(err)
				}
			}
			if cache.Renders() != 1 {
				b.Fatalf("%d renderings", cache.Renders())
			}
		})
	}
}

// processor reports the processor time of a benchmark, garbage collection included: on a busy machine the only time that compares.
func processor(b *testing.B) func() {
	now := func() int64 {
		var u syscall.Rusage
		if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
			b.Fatal(err)
		}
		return u.Utime.Nano() + u.Stime.Nano()
	}
	runtime.GC()
	before := now()
	return func() { b.ReportMetric(float64(now()-before)/float64(b.N), "cpu-ns/op") }
}

func helmValues(b *testing.B, v v1alpha1.Values) map[string]any {
	js, err := json.Marshal(v)
	if err != nil {
		b.Fatal(err)
	}
	var vals map[string]any
	if err := json.Unmarshal(js, &vals); err != nil {
		b.Fatal(err)
	}
	return vals
}

func helmEngine(b *testing.B, c *chart.Chart, v v1alpha1.Values) map[string]string {
	vals := helmValues(b, v)
	c = fresh(c)
	if err := chartutil.ProcessDependenciesWithMerge(c, vals); err != nil {
		b.Fatal(err)
	}
	top, err := chartutil.ToRenderValues(c, vals, chartutil.ReleaseOptions{Name: "demo", Namespace: "default", Revision: 1, IsInstall: true}, chartutil.DefaultCapabilities)
	if err != nil {
		b.Fatal(err)
	}
	out, err := engine.Render(c, top)
	if err != nil {
		b.Fatal(err)
	}
	return out
}

// helmTemplate does with the engine's result what Helm's action does for helm template.
func helmTemplate(b *testing.B, c *chart.Chart, v v1alpha1.Values) {
	files := helmEngine(b, c, v)
	_, manifests, err := releaseutil.SortManifests(files, nil, releaseutil.InstallOrder)
	if err != nil {
		b.Fatal(err)
	}
	var out bytes.Buffer
	for _, m := range manifests {
		fmt.Fprintf(&out, "---\n# Source: %s\n%s\n", m.Name, m.Content)
	}
}

// BenchmarkFleet10000 is one pass over 10,000 clusters with 10 distinct sets of values: what it renders, and the memory
// that is still held after it.
func BenchmarkFleet10000(b *testing.B) {
	rs := benchChart(25)
	key := ResourcesKey(rs)
	options := make([]v1alpha1.BundleOptions, 10)
	for i := range options {
		options[i] = v1alpha1.BundleOptions{Helm: &v1alpha1.HelmOptions{Values: some(i)}}
	}
	var renders, held uint64
	for b.Loop() {
		b.StopTimer()
		before := heap()
		cache := benchCache(b)
		results := make([]Result, 10_000)
		b.StartTimer()
		for i := range results {
			r, err := cache.Render(Input{Name: "demo", Resources: rs, ResourcesKey: key, Options: options[i%10]})
			if err != nil {
				b.Fatal(err)
			}
			results[i] = r
		}
		b.StopTimer()
		renders, held = cache.Renders(), heap()-before
		runtime.KeepAlive(results)
		b.StartTimer()
	}
	b.ReportMetric(float64(renders), "renders")
	b.ReportMetric(float64(held), "B-held")
}

func heap() uint64 {
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return m.HeapAlloc
}

func benchCache(b *testing.B) *Cache {
	c, err := NewCache(CacheOptions{})
	if err != nil {
		b.Fatal(err)
	}
	return c
}
