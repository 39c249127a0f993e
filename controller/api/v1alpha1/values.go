package v1alpha1

import (
	"k8s.io/apimachinery/pkg/util/json"
)

// Values is a free-form object, as a Helm chart takes it. Whole numbers stay whole numbers, so that what is stored and
// printed is what was written. Fields of this type carry the markers that make them free-form in the CRD.
//
// In values a null means something: Helm leaves out the chart's default. Kubernetes stores a null, but tools that update objects by
// merge patches (kubectl apply without --server-side, Argo CD) take it as "delete this key". The map {$null: true} stands for a null
// and passes all of them: whoever makes a Bundle writes Portable values, whoever uses one reads them WithNulls.
type Values map[string]any

// UnmarshalJSON decodes an object; whole numbers become int64.
func (v *Values) UnmarshalJSON(b []byte) error {
	var m map[string]any
	if err := json.Unmarshal(b, &m); err != nil {
		return err
	}
	*v = m
	return nil
}

// DeepCopyInto copies maps and lists at every depth; other values are shared, they cannot be changed.
func (v *Values) DeepCopyInto(out *Values) {
	if *v == nil {
		*out = nil
		return
	}
	*out = copyValue(map[string]any(*v)).(map[string]any)
}

// DeepCopy returns a copy that shares no map and no list with v.
func (v Values) DeepCopy() Values {
	var out Values
	v.DeepCopyInto(&out)
	return out
}

// nullKey is the key of the map that stands for a null.
const nullKey = "$null"

// Portable returns a copy in which every null is the map {$null: true}.
func (v Values) Portable() Values {
	return v.mapped(func(x any) any {
		if x == nil {
			return map[string]any{nullKey: true}
		}
		return x
	})
}

// WithNulls returns a copy in which every map {$null: true} is a null. A map that has other keys as well is one too: tools that
// merge can leave what was there before.
func (v Values) WithNulls() Values {
	return v.mapped(func(x any) any {
		if m, ok := x.(map[string]any); ok && m[nullKey] == true {
			return nil
		}
		return x
	})
}

// mapped returns a copy with f done to every value in maps and lists, at every depth, inner ones first.
func (v Values) mapped(f func(any) any) Values {
	var walk func(any) any
	walk = func(x any) any {
		switch x := x.(type) {
		case map[string]any:
			for k, e := range x {
				x[k] = f(walk(e))
			}
		case []any:
			for i, e := range x {
				x[i] = f(walk(e))
			}
		}
		return x
	}
	out := v.DeepCopy()
	walk(map[string]any(out))
	return out
}

func copyValue(x any) any {
	switch x := x.(type) {
	case Values:
		return copyValue(map[string]any(x))
	case map[string]any:
		m := make(map[string]any, len(x))
		for k, e := range x {
			m[k] = copyValue(e)
		}
		return m
	case []any:
		l := make([]any, len(x))
		for i, e := range x {
			l[i] = copyValue(e)
		}
		return l
	default:
		return x
	}
}
