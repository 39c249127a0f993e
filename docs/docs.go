// Package docs holds what of the documentation programs need.
package docs

import _ "embed"

// FleetSchema is the JSON Schema of fleet.yaml.
//
//go:embed fleet.schema.json
var FleetSchema string
