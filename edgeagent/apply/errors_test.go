package apply

import (
	"strings"
	"testing"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/util/validation/field"
)

// An admission plugin of some vendor may quote what the API server itself would not.
func TestFindingWithholdsQuotedSecrets(t *testing.T) {
	err := apierrors.NewInvalid(schema.GroupKind{Kind: "Secret"}, "s", field.ErrorList{field.Invalid(field.NewPath("data", "password"), "hunter2", "too short")})
	f := finding(Ref{Version: "v1", Kind: "Secret", Name: "s"}, err)
	if strings.Contains(f.Message, "hunter2") || !strings.Contains(f.Message, "data.password") || f.Reason != Invalid {
		t.Errorf("got %+v", f)
	}
	if f := finding(Ref{Version: "v1", Kind: "ConfigMap", Name: "s"}, err); !strings.Contains(f.Message, "hunter2") {
		t.Errorf("the value helps where it is no secret: %+v", f)
	}
}
