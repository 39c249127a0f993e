package apply

import (
	"fmt"
	"maps"
	"strings"
	"sync"

	"github.com/google/cel-go/cel"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"

	"shoal.dev/shoal/bundlefmt"
)

const (
	healthCost  = 100_000 // what one expression may cost: some tenths of a second on a small box
	healthRules = 512     // compiled expressions that are kept
)

// healthPrograms are compiled expressions. The environment is made when the first rule comes: few sites have one.
type healthPrograms struct {
	mu   sync.Mutex
	env  *cel.Env
	made map[string]program
}

type program struct {
	run cel.Program
	err error
}

func (h *healthPrograms) get(expr string) (cel.Program, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if p, ok := h.made[expr]; ok {
		return p.run, p.err
	}
	if h.env == nil {
		env, err := cel.NewEnv(cel.Variable("self", cel.DynType), cel.OptionalTypes())
		if err != nil {
			return nil, fmt.Errorf("set up CEL: %w", err)
		}
		h.env = env
	}
	if h.made == nil || len(h.made) >= healthRules {
		h.made = map[string]program{}
	}
	run, err := h.compile(expr)
	h.made[expr] = program{run, err}
	return run, err
}

func (h *healthPrograms) compile(expr string) (cel.Program, error) {
	ast, issues := h.env.Compile(expr)
	if err := issues.Err(); err != nil {
		first, _, _ := strings.Cut(strings.TrimPrefix(err.Error(), "ERROR: "), "\n")
		return nil, fmt.Errorf("cannot be compiled: %s", first)
	}
	return h.env.Program(ast, cel.CostLimit(healthCost), cel.EvalOptions(cel.OptOptimize))
}

// eval is the value of an expression about an object.
func (h *healthPrograms) eval(expr string, live *unstructured.Unstructured) (any, error) {
	run, err := h.get(expr)
	if err != nil {
		return nil, &brokenRule{err}
	}
	out, _, err := run.Eval(map[string]any{"self": withoutSecrets(live).Object})
	if err != nil {
		return nil, err
	}
	return out.Value(), nil
}

// withoutSecrets puts "hidden" in the place of each value of a Secret: a rule may ask whether there is one, and whatever it
// says of it, or an error quotes, goes to the hub.
func withoutSecrets(live *unstructured.Unstructured) *unstructured.Unstructured {
	data, _ := live.Object["data"].(map[string]any)
	if live.GetAPIVersion() != "v1" || live.GetKind() != "Secret" || len(data) == 0 {
		return live
	}
	shown := make(map[string]any, len(data))
	for k, v := range data {
		if shown[k] = "hidden"; v == "" {
			shown[k] = ""
		}
	}
	out := &unstructured.Unstructured{Object: maps.Clone(live.Object)}
	out.Object["data"] = shown
	return out
}

// brokenRule is an expression that can never be evaluated.
type brokenRule struct{ err error }

func (b *brokenRule) Error() string { return b.err.Error() }

// health is what the deployment's rules say. decided: nothing else needs to be looked at; f is nil then for a ready object.
func (a *Applier) healthOf(rules []bundlefmt.HealthRule, ref Ref, live *unstructured.Unstructured) (decided bool, f *Finding) {
	for _, r := range rules {
		if r.Group != ref.Group || r.Kind != ref.Kind {
			continue
		}
		if r.Failed != "" {
			yes, f := a.rule(r, "failed", r.Failed, ref, live)
			if f != nil {
				return true, f
			}
			if yes {
				return true, &Finding{ref, Failed, a.ruleMessage(r, live, "the bundle's health rule says that it has failed")}
			}
		}
		if r.Ready != "" {
			decided = true
			yes, f := a.rule(r, "ready", r.Ready, ref, live)
			if f != nil {
				return true, f
			}
			if !yes {
				return true, &Finding{ref, InProgress, a.ruleMessage(r, live, "the bundle's health rule says that it is not ready")}
			}
		}
	}
	return decided, nil
}

func (a *Applier) rule(r bundlefmt.HealthRule, what, expr string, ref Ref, live *unstructured.Unstructured) (yes bool, f *Finding) {
	v, err := a.health.eval(expr, live)
	if b, ok := err.(*brokenRule); ok {
		return false, &Finding{ref, Failed, short(fmt.Sprintf("the bundle's health rule for %s %s: %v", r.Kind, what, b), patchLength)}
	}
	if err != nil {
		// Before a controller has written a status, most rules look for what is not there.
		return false, &Finding{ref, InProgress, short(fmt.Sprintf("the bundle's health rule for %s %s cannot be told: %v", r.Kind, what, err), patchLength)}
	}
	yes, ok := v.(bool)
	if !ok {
		return false, &Finding{ref, Failed, fmt.Sprintf("the bundle's health rule for %s %s is %T, not true or false", r.Kind, what, v)}
	}
	return yes, nil
}

func (a *Applier) ruleMessage(r bundlefmt.HealthRule, live *unstructured.Unstructured, otherwise string) string {
	if r.Message == "" {
		return otherwise
	}
	v, err := a.health.eval(r.Message, live)
	if s, ok := v.(string); ok && err == nil && s != "" {
		return short(s, patchLength)
	}
	return otherwise
}
