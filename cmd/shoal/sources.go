package main

import (
	"context"
	"fmt"
	"os"

	"github.com/spf13/cobra"
	yamlv3 "go.yaml.in/yaml/v3"

	"shoal.dev/shoal/controller/api/v1alpha1"
	"shoal.dev/shoal/controller/source"
)

// sourceFlags say how a directory is read.
type sourceFlags struct {
	targetsFile string
}

func (f *sourceFlags) register(cmd *cobra.Command) {
	fl := cmd.Flags()
	fl.StringVar(&f.targetsFile, "targets-file", "", "YAML file with targets for all bundles of the directory, as a GitRepo has them; the targets in fleet.yaml then only customize")
	_ = cmd.MarkFlagFilename("targets-file", "yaml", "yml", "json")
}

// bundles reads every bundle below a directory. A name is for the only one.
func (f *sourceFlags) bundles(ctx context.Context, a *app, dir, name string) ([]*v1alpha1.Bundle, error) {
	o, done, err := f.options(a, name)
	if err != nil {
		return nil, err
	}
	defer done()
	return source.Tree(ctx, dir, o)
}

// options are for reading directories until done is called.
func (f *sourceFlags) options(a *app, name string) (o source.Options, done func(), err error) {
	o.Name = name
	if f.targetsFile != "" {
		if o.Targets, err = readTargets(f.targetsFile); err != nil {
			return o, nil, err
		}
	}
	return o, func() {}, nil
}

// readTargets reads targets: a list, or a list below the key targets.
func readTargets(file string) ([]v1alpha1.BundleTarget, error) {
	data, err := os.ReadFile(file)
	if err != nil {
		return nil, fmt.Errorf("--targets-file: %w", err)
	}
	var doc yamlv3.Node
	if err := yamlv3.Unmarshal(data, &doc); err != nil {
		return nil, yamlProblem(file, err)
	}
	if len(doc.Content) == 0 {
		return nil, fmt.Errorf("%s: there are no targets in it", file)
	}
	n := doc.Content[0]
	if n.Kind == yamlv3.SequenceNode {
		n = &yamlv3.Node{Kind: yamlv3.MappingNode, Tag: "!!map", Line: n.Line, Content: []*yamlv3.Node{{Kind: yamlv3.ScalarNode, Tag: "!!str", Value: "targets", Line: n.Line}, n}}
	}
	var list struct {
		Targets []v1alpha1.BundleTarget `json:"targets"`
	}
	if err := decodeStrict(file, n, &list); err != nil {
		return nil, err
	}
	if len(list.Targets) == 0 {
		return nil, fmt.Errorf("%s: there are no targets in it", file)
	}
	return list.Targets, nil
}
