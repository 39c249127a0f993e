// Command generate makes ../kubernetes.json.gz of Kubernetes' swagger.json on standard input: the schemas of all kinds without what
// nothing here reads. The file is that of the module k8s.io/kubernetes, at the version in e2e/kube/go.mod:
//
//	dir=$(cd e2e/kube && go list -m -f '{{.Dir}}' k8s.io/kubernetes)
//	go run ./controller/check/generate v1.36 <$dir/api/openapi-spec/swagger.json >controller/check/kubernetes.json.gz
package main

import (
	"compress/gzip"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"strings"
)

func main() {
	if err := run(os.Args[1:], os.Stdin, os.Stdout); err != nil {
		fmt.Fprintln(os.Stderr, "generate:", err)
		os.Exit(1)
	}
}

func run(args []string, in io.Reader, out io.Writer) error {
	if len(args) != 1 {
		return fmt.Errorf("want one argument, the version of Kubernetes such as v1.36")
	}
	var swagger struct {
		Definitions map[string]map[string]any `json:"definitions"`
	}
	if err := json.NewDecoder(in).Decode(&swagger); err != nil {
		return err
	}
	kinds := map[string]string{}
	definitions := map[string]any{}
	for name, d := range swagger.Definitions {
		if list, _ := d["x-kubernetes-group-version-kind"].([]any); len(list) == 1 {
			k, _ := list[0].(map[string]any)
			kinds[strings.TrimPrefix(fmt.Sprintf("%s/%s/%s", k["group"], k["version"], k["kind"]), "/")] = short(name)
		}
		definitions[short(name)] = trim(d)
	}
	w, err := gzip.NewWriterLevel(out, gzip.BestCompression)
	if err != nil {
		return err
	}
	if err := json.NewEncoder(w).Encode(map[string]any{"version": args[0], "kinds": kinds, "definitions": definitions}); err != nil {
		return err
	}
	return w.Close()
}

// short is the name of a definition without the domain that nearly all share.
func short(name string) string {
	return strings.TrimPrefix(strings.TrimPrefix(name, "io.k8s."), "api.")
}

// trim keeps what package check reads of a schema.
func trim(d map[string]any) map[string]any {
	out := map[string]any{}
	for k, v := range d {
		switch k {
		case "type", "required", "x-kubernetes-list-type", "x-kubernetes-list-map-keys", "x-kubernetes-preserve-unknown-fields":
			out[k] = v
		case "format":
			if v == "int-or-string" || v == "byte" {
				out[k] = v
			}
		case "$ref":
			out[k] = short(strings.TrimPrefix(v.(string), "#/definitions/"))
		case "items", "additionalProperties":
			if m, ok := v.(map[string]any); ok {
				out[k] = trim(m)
			}
		case "properties":
			fields := map[string]any{}
			for name, f := range v.(map[string]any) {
				fields[name] = trim(f.(map[string]any))
			}
			out[k] = fields
		}
	}
	return out
}
