package apply

import (
	"strings"
	"testing"

	"shoal.dev/shoal/bundlefmt"
)

const worker = `
apiVersion: apps/v1
kind: Deployment
metadata: {name: w}
spec:
  replicas: 0
  selector: {matchLabels: {app: w}}
  template:
    metadata: {labels: {app: w}}
    spec:
      containers:
      - {name: w, image: "w:1"}`

const (
	imagePath = "/spec/template/spec/containers/0/image"
	editImage = `{"spec":{"template":{"spec":{"containers":[{"name":"w","image":"site:9","terminationMessagePath":"/dev/termination-log","terminationMessagePolicy":"File","imagePullPolicy":"IfNotPresent","resources":{}}]}}}}`
)

func (s *site) image(name string) string {
	s.Helper()
	for _, c := range containersOf(s.TB, s, name) {
		if m := c.(map[string]any); m["name"] == "w" {
			return m["image"].(string)
		}
	}
	s.Fatal("no container w")
	return ""
}

func containersOf(t testing.TB, s *site, name string) []any {
	t.Helper()
	v, ok := at2(s.get(deployments, name).Object, []string{"spec", "template", "spec", "containers"})
	if !ok {
		t.Fatal("no containers")
	}
	return v.([]any)
}

// What is exempt from comparing is the site's between two releases: it is no drift, and a repair of something beside it leaves
// it. A release writes all that it states, whichever operation exempts it and whichever way the release goes.
func TestReleaseWritesWhatItStates(t *testing.T) {
	op := func(name, value string) bundlefmt.ComparePatch {
		return bundlefmt.ComparePatch{Kind: "Deployment", Operations: []bundlefmt.PatchOp{{Op: name, Path: imagePath, Value: value}}}
	}
	for name, p := range map[string]bundlefmt.ComparePatch{
		"remove": op("remove", ""), "replace": op("replace", `"any"`), "add": op("add", `"any"`),
		"pointer":              {Kind: "Deployment", JSONPointers: []string{imagePath}},
		"pointer to the list":  {Kind: "Deployment", JSONPointers: []string{"/spec/template/spec/containers"}},
		"remove the container": {Kind: "Deployment", Operations: []bundlefmt.PatchOp{{Op: "remove", Path: "/spec/template/spec/containers/0"}}},
		"all of it":            {Kind: "*", JSONPointers: []string{"/spec"}},
		"copy":                 {Kind: "Deployment", Operations: []bundlefmt.PatchOp{{Op: "copy", Path: imagePath, Value: "/metadata/name"}}},
		"ignore":               {Kind: "Deployment", JSONPointers: []string{imagePath}, Operations: []bundlefmt.PatchOp{{Op: "ignore"}}},
	} {
		t.Run(name, func(t *testing.T) {
			s := newSite(t)
			release := func(o Operation, image string) Deployment {
				d := s.deployment("x", strings.Replace(worker, "metadata: {name: w}", "metadata: {name: w, labels: {team: a}}", 1))
				d.Objects[0] = s.deployment("x", strings.NewReplacer("w:1", image, "metadata: {name: w}", "metadata: {name: w, labels: {team: a}}").Replace(worker)).Objects[0]
				d.Handling.ComparePatches, d.Operation = []bundlefmt.ComparePatch{p}, o
				return d
			}
			want := func(image string) {
				t.Helper()
				if got := s.image("w"); got != image {
					t.Errorf("the image is %s, want %s", got, image)
				}
			}
			inv := s.apply(s.deployment("x", worker), nil).Inventory // without a patch: it comes with the release that needs it
			s.apply(release(Upgrade, "w:2"), inv)
			want("w:2")
			s.edit(deployments, "w", editImage)
			s.clean(release("", "w:2"))
			if res := s.apply(release("", "w:2"), inv); len(res.Written) != 0 {
				t.Errorf("a repair writes %v", res.Written)
			}
			s.edit(deployments, "w", `{"metadata":{"labels":{"team":"b"}}}`)
			contains(t, s.modified(release("", "w:2")).Message, `metadata.labels.team: "b" → "a"`)
			s.apply(release("", "w:2"), inv)
			s.clean(release("", "w:2"))
			want("site:9")
			s.apply(release(Upgrade, "w:2"), inv) // the same once more: forceSyncGeneration
			want("w:2")
			s.edit(deployments, "w", editImage)
			s.apply(release(Rollback, "w:1"), inv)
			want("w:1")
			s.clean(release("", "w:1"))
		})
	}
}

// A pointer counts in the list that the bundle states: on the cluster others may have put something before it, and the next
// release may as well.
func TestExemptFieldInAListThatGrows(t *testing.T) {
	s := newSite(t)
	d := s.deployment("x", worker)
	d.Handling.ComparePatches = []bundlefmt.ComparePatch{{Kind: "Deployment", JSONPointers: []string{imagePath}}}
	inv := s.apply(d, nil).Inventory
	s.edit(deployments, "w", `{"spec":{"replicas":1,"template":{"spec":{"containers":[{"name":"injected","image":"i:1"},{"name":"w","image":"site:9"}]}}}}`)
	contains(t, s.modified(d).Message, "spec.replicas: 1 → 0")
	if res := s.apply(d, inv); len(res.Written) != 1 || s.image("w") != "site:9" || len(containersOf(t, s, "w")) != 1 { // what was added is taken out
		t.Errorf("written %v, containers %v", res.Written, containersOf(t, s, "w"))
	}
	s.clean(d)

	grown := s.deployment("x", strings.Replace(worker, `- {name: w, image: "w:1"}`, `- {name: first, image: "f:2"}`+"\n      "+`- {name: w, image: "w:2"}`, 1))
	grown.Handling, grown.Operation = d.Handling, Upgrade
	s.apply(grown, inv)
	if got := s.image("w"); got != "w:2" {
		t.Errorf("the image is %s, want w:2", got)
	}
	grown.Operation = ""
	s.clean(grown)
	s.edit(deployments, "w", `{"spec":{"template":{"spec":{"containers":[{"name":"injected","image":"i:1"},{"name":"first","image":"site:9"},{"name":"w","image":"hacked"}]}}}}`)
	contains(t, s.modified(grown).Message, `containers[w].image: "hacked" → "w:2"`)
	s.apply(grown, inv)
	if got := s.image("w"); got != "w:2" {
		t.Errorf("the image is %s, want w:2", got)
	}
	v, _ := at2(s.get(deployments, "w").Object, []string{"spec", "template", "spec", "containers"})
	if !strings.Contains(value2(s.get(deployments, "w"), "spec", "template", "spec", "containers"), `"site:9"`) {
		t.Errorf("the exempt image was set back: %v", v)
	}
	s.clean(grown)
}

// A whole map is exempt: what the site adds to it is the site's, also when a release follows, and what a release drops goes.
func TestExemptData(t *testing.T) {
	for name, p := range map[string]bundlefmt.ComparePatch{
		"pointer": {Kind: "ConfigMap", JSONPointers: []string{"/data"}},
		"remove":  {Kind: "ConfigMap", Operations: []bundlefmt.PatchOp{{Op: "remove", Path: "/data"}}},
		"replace": {Kind: "ConfigMap", Operations: []bundlefmt.PatchOp{{Op: "replace", Path: "/data", Value: "{}"}}},
	} {
		t.Run(name, func(t *testing.T) {
			s := newSite(t)
			release := func(o Operation, data string) Deployment {
				d := s.deployment("x", "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: c, labels: {team: a}}\ndata: "+data)
				d.Handling.ComparePatches, d.Operation = []bundlefmt.ComparePatch{p}, o
				return d
			}
			data := func(want string) {
				t.Helper()
				if got := value2(s.get(configMaps, "c"), "data"); got != want {
					t.Errorf("data is %s, want %s", got, want)
				}
			}
			first := release("", "{a: one, b: one, c: one}")
			inv := s.apply(first, nil).Inventory
			s.edit(configMaps, "c", `{"data":{"a":"site","b":null,"own":"site"},"metadata":{"labels":{"team":"z"}}}`)
			contains(t, s.modified(first).Message, `metadata.labels.team: "z" → "a"`)
			s.apply(first, inv)
			data(`{"a":"site","c":"one","own":"site"}`)
			s.clean(first)
			s.apply(release(Upgrade, "{a: two, b: two}"), inv)
			data(`{"a":"two","b":"two","own":"site"}`)
		})
	}
}
