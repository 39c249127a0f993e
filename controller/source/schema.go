package source

import (
	"math"
	"regexp"
	"slices"
	"strings"
	"sync"

	"shoal.dev/shoal/bundlefmt"
)

// The schema of fleet.yaml, once: the parser checks along it, docs/fleet.schema.json and the tables of
// docs/bundle-reference.md are made from it. A key that is not here is unknown.

// kind is what a value must be.
type kind int

const (
	str kind = iota
	boolean
	integer
	numberOrPercent
	stringList
	stringMap
	stringMaps // a list of them
	object     // its keys are in fields
	objects    // a list of them
	free       // any map
)

// field is a key of fleet.yaml.
type field struct {
	name   string
	doc    string // one line
	target string // what a target's value does to the bundle's; empty: it holds for the whole bundle and is refused there
	kind   kind
	fields []field

	enum     []string
	format   *format
	min, max int64 // of an integer; both 0: any. Of a numberOrPercent only min. min does not hold in a target if resets is set
	resets   bool
	items    int      // at most that many, of lists
	required []string // keys of an object that must be there
	anyOf    []string // of which one must be there
	null     string   // what a null stands for; empty: it is as if the key were absent
	refused  string   // why there is no such key here, and what to do instead
}

func (f field) find(key string) (field, bool) {
	i := slices.IndexFunc(f.fields, func(s field) bool { return s.name == key })
	if i < 0 {
		return field{}, false
	}
	return f.fields[i], true
}

// fold is find; a key whose letters differ in case only will do, as where JSON is read by Go.
func (f field) fold(key string) (field, bool) {
	if s, ok := f.find(key); ok {
		return s, true
	}
	i := slices.IndexFunc(f.fields, func(s field) bool { return strings.EqualFold(s.name, key) })
	if i < 0 {
		return field{}, false
	}
	return f.fields[i], true
}

// chooses says whether keys of the object choose clusters or bundles.
func (f field) chooses() bool {
	return slices.ContainsFunc(f.fields, func(s field) bool { return s.name == "matchLabels" || s.name == "clusterSelector" }) || f.name == "dependsOn"
}

// format is what a string must look like.
type format struct {
	pattern   string
	re        *regexp.Regexp
	max       int
	words     string // completes "must be …"
	templated bool   // may hold ${ } where templating is "all"
}

func form(pattern string, maxLen int, words string, templated bool) *format {
	pattern = "^(?:" + pattern + ")$"
	return &format{pattern, regexp.MustCompile(pattern), maxLen, words, templated}
}

func (f *format) match(s string) bool { return len(s) <= f.max && f.re.MatchString(s) }

const (
	label     = `[a-z0-9]([-a-z0-9]*[a-z0-9])?`
	subdomain = label + `(\.` + label + `)*`
)

var (
	namespaceFormat = form(label, 63, "a name of lower case letters, digits and '-', at most 63 characters", true)
	nameFormat      = form(label, maxName, "a name of lower case letters, digits and '-', at most 53 characters", false)
	releaseFormat   = form(subdomain, 53, "a name of lower case letters, digits, '-' and '.', at most 53 characters", true)
	objectFormat    = form(subdomain, 253, "the name of a Kubernetes object: lower case letters, digits, '-' and '.'", false)
	accountFormat   = form(subdomain, 253, objectFormat.words, true)
	dataKeyFormat   = form(`[-._a-zA-Z0-9]+`, 253, "a key of a Secret or ConfigMap: letters, digits, '-', '_' and '.'", false)
	pointerFormat   = form(`(/([^/~]|~[01])*)+`, 1024, "a JSON pointer: it begins with /, as in /spec/replicas, and writes ~ as ~0 and / in a name as ~1", false)
	countFormat     = form(`[0-9]{1,6}%?`, 7, `a whole number or a percentage such as "10%"`, false)
)

// acceptedStates are those that an agent knows of a bundle.
var acceptedStates = []string{
	string(bundlefmt.Ready), string(bundlefmt.NotReady), string(bundlefmt.Pending), string(bundlefmt.OutOfSync), string(bundlefmt.Modified),
	string(bundlefmt.WaitApplied), string(bundlefmt.ErrApplied), string(bundlefmt.Downloading), string(bundlefmt.Refused),
	string(bundlefmt.RolledBack), string(bundlefmt.Held), string(bundlefmt.Orphaned),
}

// Words for the column "target" of the tables.
const (
	replaced = "replaced"
	either   = "true if either is"
	appended = "appended"
	merged   = "merged key by key"
)

// fleetSchema is all of fleet.yaml. Nobody changes it.
var fleetSchema = sync.OnceValue(func() field {
	top := []field{
		{name: "name", format: nameFormat, doc: "Name of the bundle. Without it: the repository's (or directory's) name and the path, made safe for DNS, cut to 53 characters with a hash."},
		{name: "labels", kind: stringMap, doc: "Labels of the Bundle object; dependsOn.selector of other bundles looks at them."},
		{name: "annotations", kind: stringMap, doc: "Annotations of the Bundle object."},
	}
	top = append(top, optionFields()...)
	top = append(top,
		field{name: "paused", kind: boolean, doc: "Clusters keep what they have and show OutOfSync; first installs and removals wait, too."},
		field{name: "deleteNamespace", kind: boolean, doc: "Removing the bundle from a cluster deletes its namespace with everything in it."},
		field{name: "deleteCRDResources", kind: boolean, doc: "Removing the bundle deletes its CRDs, and with them every object of these kinds. Default: they stay."},
		field{name: "deleteVolumes", kind: boolean, doc: "Removing the bundle deletes its PersistentVolumes and PersistentVolumeClaims. Default: they stay. Not in Fleet."},
		field{name: "dependsOn", kind: objects, items: 64, anyOf: []string{"name", "selector"}, fields: dependencyFields(),
			doc: "Bundles that must be in an accepted state on the same cluster before this one changes there; the agent looks, also without a link. While the hub holds a newer release of one back, or cannot order it, this one waits at the hub."},
		field{name: "ignore", kind: object, doc: "What does not count for readiness.", fields: []field{
			{name: "conditions", kind: stringMaps, items: 64, doc: "A condition of an object that has all pairs of one of these maps does not count."},
		}},
		field{name: "health", kind: objects, items: 64, fields: healthFields(), required: []string{"kind"}, anyOf: []string{"ready", "failed"},
			doc: "When objects of a kind are ready that Kubernetes has no rule for. Not in Fleet."},
		field{name: "templating", enum: []string{"values", "all"}, doc: "What ${ } is filled in: Helm values only (values, the default), or plain manifests, kustomize files, namespaces and the release name as well (all). Not in Fleet."},
		field{name: "rolloutStrategy", kind: object, fields: rolloutFields(), doc: "How an update spreads."},
		field{name: "targetCustomizationMode", enum: []string{"FirstMatch", "AllMatches"}, doc: "Of several entries that match a cluster the first one counts (FirstMatch, the default), or all of them, merged in their order (AllMatches)."},
		field{name: "targetCustomizations", kind: objects, items: 1000, doc: "Other options for some clusters; see Targets."},
		field{name: "targets", kind: objects, items: 1000, doc: "The same list; these come before targetCustomizations."},
		field{name: "overrideTargets", kind: objects, items: 1000, fields: append([]field{{name: "name", doc: "A name for messages."}}, matchFields()...),
			doc: "Which clusters get this bundle, instead of what the GitRepo says. Options for them stand in targetCustomizations."},
		field{name: "imageScans", refused: "image tags are not written back to git here: let a tool such as Renovate change them there, and remove the key"},
	)
	for i := range top {
		if top[i].name == "targets" || top[i].name == "targetCustomizations" {
			top[i].fields = targetFields(top)
		}
	}
	return field{kind: object, fields: top}
})

// optionFields can stand at the top level, and in targets unless they say otherwise.
func optionFields() []field {
	return []field{
		{name: "defaultNamespace", target: replaced, format: namespaceFormat, doc: `Helm's release namespace, and the namespace of objects that name none. Default: "default".`},
		{name: "namespace", target: replaced, format: namespaceFormat, doc: "Every object goes into this namespace; an object without one, such as a ClusterRole, is then an error."},
		{name: "createNamespace", kind: boolean, doc: "The namespace is made when it is missing. Default: true."},
		{name: "namespaceLabels", kind: stringMap, target: merged, doc: "Labels of the namespace; others are removed from it, except kubernetes.io/metadata.name and those of pod-security.kubernetes.io. In a target they stay on its clusters (in Fleet they reach all)."},
		{name: "namespaceAnnotations", kind: stringMap, target: merged, doc: "Annotations of the namespace; others are removed from it. In a target they stay on its clusters."},
		{name: "serviceAccount", target: replaced, format: accountFormat, doc: "Service account in the agent's namespace with whose rights objects are written. Default: shoal-default if there is one, else the agent's rights."},
		{name: "keepResources", kind: boolean, target: either, doc: "The objects stay when the bundle is deleted or no longer targets the cluster."},
		{name: "forceSyncGeneration", kind: integer, target: "replaced if above 0", max: math.MaxInt64, doc: "Another number makes clusters apply again although nothing changed."},
		{name: "correctDrift", kind: object, target: "replaced as a whole", doc: "What happens with objects that were changed or deleted on the cluster.", fields: []field{
			{name: "enabled", kind: boolean, target: "", doc: "They are set back. Else they are reported as Modified."},
			{name: "force", kind: boolean, doc: "An object that cannot be set back by an update is deleted and made again."},
			{name: "strict", kind: boolean, doc: "Whatever somebody has added that the bundle does not state is drift, not only what raises rights or adds code; see Drift. Not in Fleet."},
			{name: "keepFailHistory", kind: boolean, doc: "Accepted; there is no Helm history on a cluster that could be kept."},
		}},
		{name: "diff", kind: object, target: appended, doc: "What does not count as drift.", fields: []field{
			{name: "comparePatches", kind: objects, items: 256, fields: comparePatchFields(), doc: "Done to both sides before they are compared: between two releases what they name is the site's, and no repair touches it. A release writes what it states, whatever is exempt. In a target: one for the same apiVersion, kind, namespace and name replaces the bundle's."},
		}},
		{name: "downstreamResources", kind: objects, items: 64, target: appended, required: []string{"kind", "name"}, doc: "Secrets and ConfigMaps beside the Bundle on the hub that go to the cluster with it.", fields: []field{
			{name: "kind", enum: []string{"Secret", "ConfigMap"}, doc: "Kind of the object."},
			{name: "name", format: objectFormat, doc: "Name of the object."},
		}},
		{name: "helm", kind: object, target: "field by field", fields: helmFields(), doc: "How a chart is rendered."},
		{name: "kustomize", kind: object, target: "field by field", doc: "Which kustomization is built.", fields: []field{
			{name: "dir", target: replaced, doc: "Directory with the kustomization.yaml. Default: the root."},
		}},
		{name: "yaml", kind: object, target: "field by field", doc: "For plain YAML.", fields: []field{
			{name: "overlays", kind: stringList, items: 1000, target: appended, doc: "Names of directories below overlays/, laid over the files in this order; see Overlays."},
		}},
	}
}

func helmFields() []field {
	key := []field{
		{name: "name", format: objectFormat, doc: "Name of the object on the cluster."},
		{name: "namespace", format: namespaceFormat, doc: "Its namespace. Default: the release's."},
		{name: "key", format: dataKeyFormat, doc: "Key in its data. Default: values.yaml."},
	}
	return []field{
		{name: "chart", target: replaced, doc: "Directory or .tgz archive in the bundle, URL of an archive, oci:// reference, or the name in helm.repo. Default: the root. Charts in git repositories are refused."},
		{name: "repo", target: replaced, doc: "Chart repository (https://) or OCI registry (oci://). The chart is fetched when the bundle is made; the hub and the cluster fetch nothing."},
		{name: "version", target: replaced, doc: "Version or semver range (^1.2) of the chart; the highest that fits is taken."},
		{name: "releaseName", target: replaced, format: releaseFormat, doc: ".Release.Name, also of plain YAML. Default: the bundle's name."},
		{name: "randomSeed", target: replaced, doc: "Part of what random values of the chart are made of: another text gives other values, ${ .ClusterName } each cluster its own. A date (2026-11-27) is also what now gives. See Random values. Not in Fleet."},
		{name: "values", kind: free, target: "merged key by key at every depth; lists are replaced, null removes the chart's default", doc: "Values for the chart; ${ } in them is filled in, see Templates."},
		{name: "valuesFiles", kind: stringList, items: 1000, target: "over the target's own values", doc: "Files merged over values in this order when the bundle is made; they may lie elsewhere in the repository (../common.yaml). In Fleet the top-level list needs chart or repo; here it always counts."},
		{name: "templateValues", kind: stringMap, target: merged, doc: "Text by top-level key of values: filled in and put in place of that key. What is one expression keeps its type, as in values; all else is read as YAML."},
		{name: "valuesFrom", kind: objects, items: 64, target: "appended; the same kind, namespace, name and key replaces", anyOf: []string{"configMapKeyRef", "secretKeyRef"}, doc: "Values that are on the cluster and never leave it; they win over all others. A chart may pass such a value on, not compute with it.", fields: []field{
			{name: "configMapKeyRef", kind: object, fields: key, required: []string{"name"}, doc: "A key of a ConfigMap."},
			{name: "secretKeyRef", kind: object, fields: key, required: []string{"name"}, doc: "A key of a Secret; wins over the ConfigMap of the same entry."},
		}},
		{name: "timeoutSeconds", kind: integer, target: "replaced; a negative number sets it back to 0", max: math.MaxInt32, resets: true, doc: "How long a release may take to become ready. 0: no limit of its own."},
		{name: "takeOwnership", kind: boolean, target: either, doc: "Objects that are on the cluster already and belong to no bundle are adopted. Default: they are an error. What a bundle states is its alone: a field that a later release drops goes, whoever has set it as well; what it never stated stays."},
		{name: "force", kind: boolean, target: either, doc: "An object that a release cannot change in place (the message names the field) is deleted and made again, but never a volume, a CRD or a namespace with what is in it."},
		{name: "atomic", kind: boolean, target: either, doc: "A release that fails, or is not ready within timeoutSeconds (default 600), gives way to the one before."},
		{name: "waitForJobs", kind: boolean, target: either, doc: "A Job is ready when it is complete."},
		{name: "disablePreProcess", kind: boolean, target: either, doc: "${ } in values is left as it is."},
		{name: "disableDNS", kind: boolean, target: either, doc: "Accepted; templates never resolve names here."},
		{name: "maxHistory", kind: integer, max: math.MaxInt32, doc: "Accepted; an agent always keeps the release before the current one."},
		{name: "skipSchemaValidation", kind: boolean, doc: "Values are not held against the chart's values.schema.json."},
		{name: "disableDependencyUpdate", kind: boolean, doc: "Dependencies that a chart in the directory lacks are not fetched."},
	}
}

func comparePatchFields() []field {
	return []field{
		{name: "apiVersion", doc: "Of the objects; empty: any. Of its group and of kind, * matches anything."},
		{name: "kind", doc: "Of the objects; empty: any."},
		{name: "namespace", doc: "Of the objects; empty: any."},
		{name: "name", doc: "Of the objects; empty: any. A regular expression where an operation is ignore."},
		{name: "jsonPointers", kind: stringList, items: 256, format: pointerFormat, doc: "Fields that do not count. Places in lists are those in the bundle's object."},
		{name: "operations", kind: objects, items: 256, required: []string{"op"}, doc: "Operations of JSON Patch, done to both sides.", fields: []field{
			{name: "op", enum: []string{"add", "remove", "replace", "test", "ignore"}, doc: "Operation of JSON Patch; ignore: the object may be missing."},
			{name: "path", format: pointerFormat, doc: "JSON pointer of the field."},
			{name: "value", null: "null", doc: "Value, as JSON or plain text."},
		}},
	}
}

func dependencyFields() []field {
	return []field{
		{name: "name", format: nameFormat, doc: "Name of the bundle."},
		{name: "selector", kind: object, fields: selectorFields(), doc: "Labels of the bundles; no match is an error."},
		{name: "acceptedStates", kind: stringList, items: len(acceptedStates), enum: acceptedStates, doc: "States that will do. Default: Ready."},
	}
}

func healthFields() []field {
	return []field{
		{name: "group", doc: "API group of the kind; empty: the core group."},
		{name: "kind", doc: "Kind of the objects."},
		{name: "ready", doc: "CEL expression, true when the object (self) is ready."},
		{name: "failed", doc: "CEL expression, true when it will never be ready."},
		{name: "message", doc: "CEL expression that says why it is not ready."},
	}
}

func rolloutFields() []field {
	return []field{
		{name: "maxUnavailable", kind: numberOrPercent, min: 1, doc: "How many clusters, as a number or a percentage of the targeted ones, may be updating or not ready at a time, at least 1. First installs count; clusters that are not ready anyway do not wait. Default: 100%."},
		{name: "maxNotReady", kind: numberOrPercent, doc: "How many clusters of a partition, as a number or a percentage (rounded down), may be behind or not ready when the next partition begins. Default: 0."},
		{name: "maxUnavailablePartitions", kind: numberOrPercent, doc: "How many partitions may be over their maxNotReady before the rollout stops. Default: 0."},
		{name: "autoPartitionSize", kind: numberOrPercent, min: -1e6, doc: "Size of the partitions that are made when none are listed; 0 or less: none are made. Default: 25%."},
		{name: "autoPartitionThreshold", kind: integer, min: math.MinInt32, max: math.MaxInt32, doc: "Number of clusters from which on partitions are made; 0 or less: never. Default: 200."},
		{name: "maxNew", kind: integer, min: 1, max: math.MaxInt32, doc: "How many clusters may get the bundle for the first time at once. Default: 50, or 5% of a large fleet."},
		{name: "partitions", kind: objects, items: 100, doc: "Parts of the clusters, updated one after the other. Clusters that none matches form a last one (in Fleet they are never updated).", fields: append([]field{
			{name: "name", doc: "A name for messages."},
			{name: "maxUnavailable", kind: numberOrPercent, min: 1, doc: "Within the partition. Default: that of the rollout strategy."},
			{name: "maxNotReady", kind: numberOrPercent, doc: "Of this partition, when the next one begins: 0 waits for all of it. Default: that of the rollout strategy."},
		}, matchFields()...)},
	}
}

// targetFields are those of an entry of targets; top are those of the bundle.
func targetFields(top []field) []field {
	fields := append([]field{{name: "name", doc: "A name for messages."}}, matchFields()...)
	fields = append(fields, field{name: "doNotDeploy", kind: boolean, doc: "Clusters that match get nothing, also from later entries."})
	fields = append(fields, inTarget(optionFields())...)
	for _, f := range top {
		if !slices.ContainsFunc(fields, func(g field) bool { return g.name == f.name }) {
			fields = append(fields, field{name: f.name, refused: wholeBundle})
		}
	}
	return fields
}

const wholeBundle = "it holds for the whole bundle: set it at the top level"

// inTarget turns what holds for the whole bundle into fields that say so.
func inTarget(fields []field) []field {
	for i, f := range fields {
		switch {
		case f.target == "":
			fields[i] = field{name: f.name, refused: wholeBundle}
		case f.target == "field by field":
			fields[i].fields = inTarget(f.fields)
		}
		fields[i].min, fields[i].resets = f.min, false
		if f.resets {
			fields[i].min = -f.max
		}
	}
	return fields
}

func matchFields() []field {
	return []field{
		{name: "clusterName", doc: "Matches the cluster of that name, or of that display name (label management.cattle.io/cluster-display-name)."},
		{name: "clusterSelector", kind: object, fields: selectorFields(), doc: "Matches by the cluster's labels; {} matches every cluster."},
		{name: "clusterGroup", doc: "Matches the members of that cluster group."},
		{name: "clusterGroupSelector", kind: object, fields: selectorFields(), doc: "Matches members of groups with these labels; with clusterGroup, both must hold for the same group. A cluster in no group counts as in one without name and labels."},
	}
}

func selectorFields() []field {
	return []field{
		{name: "matchLabels", kind: stringMap, doc: "Labels that must be there with these values."},
		{name: "matchExpressions", kind: objects, items: 100, required: []string{"key", "operator"}, doc: "Requirements that must all hold.", fields: []field{
			{name: "key", doc: "Key of the label."},
			{name: "operator", enum: []string{"In", "NotIn", "Exists", "DoesNotExist"}, doc: "How key and values relate."},
			{name: "values", kind: stringList, items: 1000, doc: "For In and NotIn."},
		}},
	}
}
