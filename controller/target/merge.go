package target

import (
	"cmp"
	"maps"
	"slices"

	"shoal.dev/shoal/controller/api/v1alpha1"
)

// Merge lays a target's options over the bundle's. Neither argument is changed and the result shares no map with them. Values may
// be portable in both; they have nulls in the result.
//
//	defaultNamespace, namespace, serviceAccount, kustomize.dir              the target's, if set
//	helm.chart, repo, version, releaseName, randomSeed                      the target's, if set
//	forceSyncGeneration                                                     the target's, if above 0
//	helm.timeoutSeconds                                                     the target's, if above 0; 0, if it is below
//	helm.values                                                             merged key by key at every depth, lists replaced
//	helm.templateValues, namespaceLabels, namespaceAnnotations              merged key by key
//	helm.valuesFrom, downstreamResources                                    the bundle's, then those of the target that are new
//	yaml.overlays                                                           the bundle's, then the target's
//	diff.comparePatches                                                     the bundle's, then the target's; one for the same objects takes its place
//	keepResources, helm.takeOwnership, force, atomic, waitForJobs,
//	disableDNS, disablePreProcess, skipSchemaValidation, disableDependencyUpdate   true if either is
//	correctDrift                                                            replaced as a whole, if set
//	createNamespace                                                         the bundle's; Select refuses it in a target
func Merge(base, custom v1alpha1.BundleOptions) v1alpha1.BundleOptions {
	out, c := *base.DeepCopy(), *custom.DeepCopy()
	for _, h := range []*v1alpha1.HelmOptions{out.Helm, c.Helm} {
		if h != nil {
			h.Values = h.Values.WithNulls()
		}
	}
	override(&out.DefaultNamespace, c.DefaultNamespace)
	override(&out.Namespace, c.Namespace)
	override(&out.ServiceAccount, c.ServiceAccount)
	out.KeepResources = out.KeepResources || c.KeepResources
	if c.ForceSyncGeneration > 0 {
		out.ForceSyncGeneration = c.ForceSyncGeneration
	}
	if c.CorrectDrift != nil {
		out.CorrectDrift = c.CorrectDrift
	}
	out.NamespaceLabels = overlay(out.NamespaceLabels, c.NamespaceLabels)
	out.NamespaceAnnotations = overlay(out.NamespaceAnnotations, c.NamespaceAnnotations)
	out.DownstreamResources = appendNew(out.DownstreamResources, c.DownstreamResources)
	out.Diff = mergeDiff(out.Diff, c.Diff)
	out.Helm = mergeHelm(out.Helm, c.Helm)
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

func mergeHelm(out, c *v1alpha1.HelmOptions) *v1alpha1.HelmOptions {
	if c == nil {
		return out
	}
	if out == nil {
		out = &v1alpha1.HelmOptions{}
	}
	override(&out.Chart, c.Chart)
	override(&out.Repo, c.Repo)
	override(&out.Version, c.Version)
	override(&out.ReleaseName, c.ReleaseName)
	override(&out.RandomSeed, c.RandomSeed)
	out.Values = MergeValues(out.Values, c.Values)
	out.TemplateValues = overlay(out.TemplateValues, c.TemplateValues)
	out.ValuesFrom = appendValuesFrom(out.ValuesFrom, c.ValuesFrom)
	switch {
	case c.TimeoutSeconds > 0:
		out.TimeoutSeconds = c.TimeoutSeconds
	case c.TimeoutSeconds < 0:
		out.TimeoutSeconds = 0
	}
	if c.MaxHistory != 0 {
		out.MaxHistory = c.MaxHistory
	}
	for _, f := range []struct {
		out    *bool
		custom bool
	}{
		{&out.TakeOwnership, c.TakeOwnership}, {&out.Force, c.Force}, {&out.Atomic, c.Atomic}, {&out.WaitForJobs, c.WaitForJobs},
		{&out.DisableDNS, c.DisableDNS}, {&out.DisablePreProcess, c.DisablePreProcess}, {&out.SkipSchemaValidation, c.SkipSchemaValidation},
		{&out.DisableDependencyUpdate, c.DisableDependencyUpdate},
	} {
		*f.out = *f.out || f.custom
	}
	return out
}

// appendValuesFrom adds the objects that are not there yet. A later one wins, so one that is repeated stays at its place.
func appendValuesFrom(base, custom []v1alpha1.ValuesFrom) []v1alpha1.ValuesFrom {
	type ref struct {
		kind string
		v1alpha1.ValuesKey
	}
	seen := map[ref]bool{}
	isNew := func(kind string, k *v1alpha1.ValuesKey) bool {
		if k == nil {
			return false
		}
		r := ref{kind, *k}
		r.Key = cmp.Or(r.Key, "values.yaml")
		was := seen[r]
		seen[r] = true
		return !was
	}
	for _, b := range base {
		isNew("ConfigMap", b.ConfigMapKeyRef)
		isNew("Secret", b.SecretKeyRef)
	}
	for _, c := range custom {
		var v v1alpha1.ValuesFrom
		if isNew("ConfigMap", c.ConfigMapKeyRef) {
			v.ConfigMapKeyRef = c.ConfigMapKeyRef
		}
		if isNew("Secret", c.SecretKeyRef) {
			v.SecretKeyRef = c.SecretKeyRef
		}
		if v != (v1alpha1.ValuesFrom{}) {
			base = append(base, v)
		}
	}
	return base
}

func mergeDiff(out, c *v1alpha1.Diff) *v1alpha1.Diff {
	if out == nil || c == nil {
		if c != nil {
			return c
		}
		return out
	}
	for _, p := range c.ComparePatches {
		i := slices.IndexFunc(out.ComparePatches, func(o v1alpha1.ComparePatch) bool {
			return o.APIVersion == p.APIVersion && o.Kind == p.Kind && o.Namespace == p.Namespace && o.Name == p.Name
		})
		if i >= 0 {
			out.ComparePatches[i] = p
		} else {
			out.ComparePatches = append(out.ComparePatches, p)
		}
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

func overlay(base, custom map[string]string) map[string]string {
	if base == nil {
		return custom
	}
	maps.Copy(base, custom)
	return base
}

func appendNew[T comparable](base, custom []T) []T {
	for _, c := range custom {
		if !slices.Contains(base, c) {
			base = append(base, c)
		}
	}
	return base
}
