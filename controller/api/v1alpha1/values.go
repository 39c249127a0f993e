package v1alpha1

import (
	"k8s.io/apimachinery/pkg/util/json"
)

// Values is a free-form object, as a Helm chart takes it. Whole numbers stay whole numbers, so that what is stored and
// printed is what was written. Fields of this type carry the markers that make them free-form in the CRD.
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
