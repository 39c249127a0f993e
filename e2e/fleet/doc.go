// Package fleet runs a whole Shoal installation on this machine: real Kubernetes clusters (package kubetest), the hub and the
// agents as processes of their own, and between each agent and the hub a link that can be cut. The stories in e2e and the demo
// are written with it.
//
// A Fleet ends with Close. Whatever happens to the process that made it, no child outlives it: the clusters end when their
// stdin closes, hub and agents when their parent dies.
package fleet
