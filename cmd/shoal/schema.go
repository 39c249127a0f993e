package main

import (
	"io"

	"github.com/spf13/cobra"

	"shoal.dev/shoal/docs"
)

func schemaCommand(a *app) *cobra.Command {
	return &cobra.Command{
		Use:   "schema",
		Short: "Print the JSON Schema of fleet.yaml, for editors",
		Long: `Print the JSON Schema of fleet.yaml. Editors that know YAML then complete keys, explain them and mark mistakes:

  any editor with the YAML language server (VS Code, Neovim, Helix, Emacs …)
      begin fleet.yaml with the line   # yaml-language-server: $schema=fleet.schema.json
  VS Code, for all of them, in .vscode/settings.json
      "yaml.schemas": {"./fleet.schema.json": ["**/fleet.yaml", "**/fleet.yml"]}
  JetBrains
      Settings, Languages & Frameworks, Schemas and DTDs, JSON Schema Mappings: add the file, with the pattern fleet.yaml

The schema knows keys and types. shoal lint finds what only rendering shows.`,
		Example: "  shoal schema > fleet.schema.json",
		Args:    cobra.NoArgs,
		RunE: func(*cobra.Command, []string) error {
			_, err := io.WriteString(a.stdout, docs.FleetSchema)
			return err
		},
	}
}
