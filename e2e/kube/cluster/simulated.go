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

// simulatedNode is the node every simulated cluster starts with. A test may
// create more: kwok plays all of them.
func simulatedNode(name string) map[string]any {
	return map[string]any{
		"apiVersion": "v1",
		"kind":       "Node",
		"metadata": map[string]any{
			"name": name,
			"labels": map[string]string{
				"kubernetes.io/hostname": name,
				"kubernetes.io/os":       "linux",
				"kubernetes.io/arch":     "amd64",
			},
		},
	}
}
