package target

import "shoal.dev/shoal/controller/api/v1alpha1"

// Merge lays a target's options over the bundle's. Neither argument is changed and the result shares no map with them.
//
//	defaultNamespace, namespace, helm.chart, helm.releaseName, kustomize.dir   the target's, if set
//	helm.values                                                                merged key by key at every depth, lists replaced
//	yaml.overlays                                                              the bundle's, then the target's
//	keepResources                                                              true if either is
//	correctDrift                                                               replaced as a whole, if set
//	createNamespace                                                            the bundle's; Select refuses it in a target
func Merge(base, custom v1alpha1.BundleOptions) v1alpha1.BundleOptions {
	out, c := *base.DeepCopy(), *custom.DeepCopy()
	override(&out.DefaultNamespace, c.DefaultNamespace)
	override(&out.Namespace, c.Namespace)
	out.KeepResources = out.KeepResources || c.KeepResources
	if c.CorrectDrift != nil {
		out.CorrectDrift = c.CorrectDrift
	}
	switch {
	case out.Helm == nil:
		out.Helm = c.Helm
	case c.Helm != nil:
		override(&out.Helm.Chart, c.Helm.Chart)
		override(&out.Helm.ReleaseName, c.Helm.ReleaseName)
		out.Helm.Values = MergeValues(out.Helm.Values, c.Helm.Values)
	}
	switch {
	case out.Kustomize == nil:
		out.Kustomize = c.Kustomize
	case c.Kustomize != nil:
		override(&out.Kustomize.Dir, c.Kustomize.Dir)
	}
	switch {
	case out.YAML == nil:
		out.YAML = c.YAML
	case c.YAML != nil:
		out.YAML.Overlays = append(out.YAML.Overlays, c.YAML.Overlays...)
	}
	return out
}

// MergeValues lays Helm values over others: maps are merged key by key at every depth, anything else is replaced. A null
// stays a null: Helm takes it as "remove the chart's default". base may be changed.
func MergeValues(base, custom v1alpha1.Values) v1alpha1.Values {
	if base == nil {
		return custom
	}
	mergeMap(base, custom)
	return base
}

func mergeMap(base, custom map[string]any) {
	for k, v := range custom {
		bm, ok := base[k].(map[string]any)
		if cm, both := v.(map[string]any); ok && both {
			mergeMap(bm, cm)
			continue
		}
		base[k] = v
	}
}

func override(base *string, custom string) {
	if custom != "" {
		*base = custom
	}
}
