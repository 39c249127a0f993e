package cluster

import (
	_ "embed"
	"path/filepath"
)

// stages is kwok's configuration.
//
//go:embed stages.yaml
var stages []byte

func kwok(o Options, s state) spec {
	return spec{
		name: "kwok",
		env:  goEnv(96),
		args: []string{
			"--config=" + filepath.Join(o.Dir, "pki/kwok.yaml"),
			"--kubeconfig=" + filepath.Join(o.Dir, "pki/kwok.kubeconfig"),
			"--manage-all-nodes=true",
			"--node-ip=" + nth(s.podNet(), 1).String(),
			"--cidr=" + s.podNet().String(),
			"--node-lease-duration-seconds=40",
		},
	}
}
