package source

// kind is what a value in fleet.yaml must be.
type kind int

const (
	str kind = iota
	boolean
	numberOrPercent
	stringList
	stringMap
	object // its keys are in fields
	objects
	free // any map
)

// field is a key of fleet.yaml.
type field struct {
	kind   kind
	fields map[string]field
	later  bool // known, not supported yet: refused by name
}

func later() field { return field{later: true} }

func laterAll(m map[string]field, keys ...string) map[string]field {
	for _, k := range keys {
		m[k] = later()
	}
	return m
}

// schema is every key of the reference. A key that is not here is unknown.
func schema() map[string]field {
	top := optionFields()
	top["name"] = field{kind: str}
	top["labels"] = field{kind: stringMap}
	top["paused"] = field{kind: boolean}
	top["rolloutStrategy"] = field{kind: object, fields: laterAll(map[string]field{
		"maxUnavailable": {kind: numberOrPercent},
	}, "maxUnavailablePartitions", "autoPartitionSize", "autoPartitionThreshold", "maxNew", "partitions")}
	top["targets"] = field{kind: objects, fields: targetFields()}
	top["targetCustomizations"] = field{kind: objects, fields: targetFields()}
	return laterAll(top, "deleteNamespace", "deleteCRDResources", "dependsOn", "ignore", "targetCustomizationMode",
		"overrideTargets", "imageScans")
}

// optionFields can be set for the bundle and for a target.
func optionFields() map[string]field {
	return laterAll(map[string]field{
		"defaultNamespace": {kind: str},
		"namespace":        {kind: str},
		"createNamespace":  {kind: boolean},
		"keepResources":    {kind: boolean},
		"correctDrift": {kind: object, fields: laterAll(map[string]field{
			"enabled": {kind: boolean},
			"force":   {kind: boolean},
		}, "keepFailHistory")},
		"helm": {kind: object, fields: laterAll(map[string]field{
			"chart":       {kind: str},
			"releaseName": {kind: str},
			"values":      {kind: free},
			"valuesFiles": {kind: stringList},
		}, "repo", "version", "templateValues", "valuesFrom", "timeoutSeconds", "takeOwnership", "force", "atomic",
			"waitForJobs", "disableDNS", "disablePreProcess", "maxHistory", "skipSchemaValidation", "disableDependencyUpdate")},
		"kustomize": {kind: object, fields: map[string]field{"dir": {kind: str}}},
		"yaml":      {kind: object, fields: map[string]field{"overlays": {kind: stringList}}},
	}, "namespaceLabels", "namespaceAnnotations", "serviceAccount", "forceSyncGeneration", "diff", "downstreamResources")
}

func targetFields() map[string]field {
	f := optionFields()
	f["name"] = field{kind: str}
	f["clusterName"] = field{kind: str}
	f["clusterGroup"] = field{kind: str}
	f["clusterSelector"] = field{kind: object, fields: selectorFields()}
	f["clusterGroupSelector"] = field{kind: object, fields: selectorFields()}
	f["doNotDeploy"] = field{kind: boolean}
	return f
}

func selectorFields() map[string]field {
	return map[string]field{
		"matchLabels": {kind: stringMap},
		"matchExpressions": {kind: objects, fields: map[string]field{
			"key":      {kind: str},
			"operator": {kind: str},
			"values":   {kind: stringList},
		}},
	}
}
