package main

import (
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"

	yamlv3 "go.yaml.in/yaml/v3"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"shoal.dev/shoal/bundlefmt"
	"shoal.dev/shoal/controller/api/v1alpha1"
)

// clustersHelp is what commands say about a file of clusters.
const clustersHelp = `The file holds what "kubectl get clusters.shoal.dev,clustergroups.shoal.dev -o yaml" prints, or a stream of Cluster and ClusterGroup
objects, or simply a list:

  - name: paris
    labels: {env: prod}
  - name: rome
    annotations: {owner: south}
    templateValues: {region: it}`

// clustersFile is a fleet as a file describes it. It is read strictly: a label with a typing mistake would otherwise look like a
// target that does not match.
type clustersFile struct {
	clusters []v1alpha1.Cluster
	groups   []v1alpha1.ClusterGroup
}

// listedCluster is a cluster in the simple form.
type listedCluster struct {
	Name           string            `json:"name"`
	Labels         map[string]string `json:"labels"`
	Annotations    map[string]string `json:"annotations"`
	TemplateValues v1alpha1.Values   `json:"templateValues"`
}

// readClusters reads a file; "-" is standard input. Clusters of other workspaces than the named one are left out; without a name
// they all have to be of one, because a bundle is for the clusters of its own workspace.
func readClusters(file, workspace string) (*clustersFile, error) {
	var data []byte
	var err error
	if file == "-" {
		data, err = io.ReadAll(os.Stdin)
	} else {
		data, err = os.ReadFile(file)
	}
	if err != nil {
		return nil, fmt.Errorf("read clusters: %w", err)
	}
	f, err := parseClusters(file, data)
	if err != nil {
		return nil, err
	}
	if len(f.clusters) == 0 {
		return nil, fmt.Errorf("%s: there is no cluster in it", file)
	}
	return f, f.only(file, workspace)
}

func (f *clustersFile) only(file, workspace string) error {
	if workspace != "" {
		f.clusters = slices.DeleteFunc(f.clusters, func(c v1alpha1.Cluster) bool { return c.Namespace != "" && c.Namespace != workspace })
		f.groups = slices.DeleteFunc(f.groups, func(g v1alpha1.ClusterGroup) bool { return g.Namespace != "" && g.Namespace != workspace })
		if len(f.clusters) == 0 {
			return fmt.Errorf("%s: there is no cluster of workspace %s in it", file, workspace)
		}
		return nil
	}
	var all []string
	for _, c := range f.clusters {
		all = append(all, c.Namespace)
	}
	for _, g := range f.groups {
		all = append(all, g.Namespace)
	}
	slices.Sort(all)
	all = slices.DeleteFunc(slices.Compact(all), func(ns string) bool { return ns == "" })
	if len(all) > 1 {
		return fmt.Errorf("%s: it holds the workspaces %s: choose one with --namespace", file, strings.Join(all, ", "))
	}
	return nil
}

// parseClusters reads all documents and says everything that is wrong with them.
func parseClusters(file string, data []byte) (*clustersFile, error) {
	p := clustersParser{file: file, seen: map[string]bool{}}
	dec := yamlv3.NewDecoder(strings.NewReader(string(data)))
	for {
		var doc yamlv3.Node
		err := dec.Decode(&doc)
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			p.errs = append(p.errs, yamlProblem(file, err))
			break
		}
		p.document(doc.Content[0])
	}
	return &p.out, errors.Join(p.errs...)
}

type clustersParser struct {
	file string
	out  clustersFile
	seen map[string]bool // "Kind namespace/name"
	errs []error
}

func (p *clustersParser) errorf(n *yamlv3.Node, format string, args ...any) {
	p.errs = append(p.errs, fmt.Errorf("%s:%d: %s", p.file, n.Line, fmt.Sprintf(format, args...)))
}

func (p *clustersParser) document(n *yamlv3.Node) {
	switch {
	case n.ShortTag() == "!!null": // an empty document
	case n.Kind == yamlv3.SequenceNode:
		for _, e := range n.Content {
			p.listed(e)
		}
	case n.Kind == yamlv3.MappingNode:
		p.object(n)
	default:
		p.errorf(n, "want a Cluster, a ClusterGroup or a list of clusters")
	}
}

func (p *clustersParser) object(n *yamlv3.Node) {
	kind := child(n, "kind")
	version := child(n, "apiVersion")
	if kind == nil || version == nil {
		p.errorf(n, "want a Cluster or a ClusterGroup with kind and apiVersion, or a list of clusters (- name: paris)")
		return
	}
	ours := version.Value == v1alpha1.GroupVersion.String()
	switch k := kind.Value; {
	case k == "List" || ours && (k == "ClusterList" || k == "ClusterGroupList"):
		items := child(n, "items")
		if items == nil {
			return
		}
		for _, e := range items.Content {
			if e.Kind != yamlv3.MappingNode {
				p.errorf(e, "want a Cluster or a ClusterGroup")
				continue
			}
			p.object(e)
		}
	case ours && k == "Cluster":
		var c v1alpha1.Cluster
		if p.decode(n, &c) && p.named(n, k, c.Namespace, c.Name) {
			p.out.clusters = append(p.out.clusters, c)
		}
	case ours && k == "ClusterGroup":
		var g v1alpha1.ClusterGroup
		if !p.decode(n, &g) || !p.named(n, k, g.Namespace, g.Name) {
			return
		}
		if _, err := metav1.LabelSelectorAsSelector(g.Spec.Selector); err != nil {
			p.errorf(lineOf(n, "spec.selector"), "spec.selector: %v", err)
			return
		}
		p.out.groups = append(p.out.groups, g)
	default:
		p.errorf(kind, "%s of %s: want Cluster or ClusterGroup of %s", k, version.Value, v1alpha1.GroupVersion)
	}
}

func (p *clustersParser) listed(n *yamlv3.Node) {
	if n.Kind == yamlv3.MappingNode && child(n, "kind") != nil {
		p.object(n)
		return
	}
	var l listedCluster
	if n.Kind != yamlv3.MappingNode {
		p.errorf(n, "want a cluster, such as {name: paris, labels: {env: prod}}")
		return
	}
	if p.decode(n, &l) && p.named(n, "Cluster", "", l.Name) {
		p.out.clusters = append(p.out.clusters, v1alpha1.Cluster{
			ObjectMeta: metav1.ObjectMeta{Name: l.Name, Labels: l.Labels, Annotations: l.Annotations},
			Spec:       v1alpha1.ClusterSpec{TemplateValues: l.TemplateValues},
		})
	}
}

func (p *clustersParser) named(n *yamlv3.Node, kind, namespace, name string) bool {
	at := lineOf(n, "metadata.name")
	if c := child(n, "name"); c != nil {
		at = c
	}
	switch id := fmt.Sprintf("%s %s/%s", kind, namespace, name); {
	case name == "":
		p.errorf(n, "the %s has no name", kind)
	case !bundlefmt.ValidName(name):
		p.errorf(at, "name %q: want lower case letters, digits and dashes, at most 63", name)
	case p.seen[id]:
		p.errorf(at, "%s %s appears twice", kind, name)
	default:
		p.seen[id] = true
		return true
	}
	return false
}

func (p *clustersParser) decode(n *yamlv3.Node, into any) bool {
	before := len(p.errs)
	for _, path := range []string{"labels", "annotations", "metadata.labels", "metadata.annotations"} {
		p.stringMap(n, path)
	}
	if len(p.errs) > before {
		return false
	}
	if err := decodeStrict(p.file, n, into); err != nil {
		p.errs = append(p.errs, err)
		return false
	}
	return true
}

// stringMap refuses numbers and the like with what to write: it is the mistake that people make with labels.
func (p *clustersParser) stringMap(n *yamlv3.Node, path string) {
	for key := range strings.SplitSeq(path, ".") {
		if n = child(n, key); n == nil || n.Kind != yamlv3.MappingNode {
			return
		}
	}
	for i := 0; i+1 < len(n.Content); i += 2 {
		if v := n.Content[i+1]; v.Kind == yamlv3.ScalarNode && v.ShortTag() != "!!str" && v.ShortTag() != "!!timestamp" {
			p.errorf(v, "%s.%s must be a string: write %q", path, n.Content[i].Value, v.Value)
		}
	}
}
