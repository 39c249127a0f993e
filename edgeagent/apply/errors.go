package apply

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"strings"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// ErrUnavailable means that the API server does not answer, is overloaded, or does not accept the agent's credential.
// Nothing can be said about any object; the same call may succeed later, so back off and repeat it.
var ErrUnavailable = errors.New("the Kubernetes API server is not available")

func isStatus(err error) bool {
	var s apierrors.APIStatus
	return errors.As(err, &s)
}

// outage separates what is wrong with the API server, which ends a pass, from what is wrong with one object, for which it
// returns nil. An answer that could be either (503 comes from an aggregated API as well as from the API server itself) is
// settled by asking for the server's health.
func (a *Applier) outage(ctx context.Context, err error) error {
	switch {
	case err == nil:
		return nil
	case ctx.Err() != nil:
		return ctx.Err()
	case !isStatus(err), apierrors.IsUnauthorized(err), apierrors.IsTooManyRequests(err):
		return fmt.Errorf("%w: %w", ErrUnavailable, bare(err))
	case apierrors.IsServiceUnavailable(err), apierrors.IsServerTimeout(err), apierrors.IsTimeout(err), apierrors.IsInternalError(err),
		apierrors.ReasonForError(err) == metav1.StatusReasonUnknown && httpCode(err) >= http.StatusInternalServerError:
		if herr := a.healthy(ctx); herr != nil {
			return fmt.Errorf("%w: %w", ErrUnavailable, err)
		}
	}
	return nil
}

func (a *Applier) healthy(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, requestTimeout)
	defer cancel()
	return a.raw.Get().AbsPath("/readyz").MaxRetries(0).Do(ctx).Error()
}

func httpCode(err error) int32 {
	var s apierrors.APIStatus
	if errors.As(err, &s) {
		return s.Status().Code
	}
	return 0
}

// finding says what the API server's answer means for one object.
func finding(ref Ref, err error) Finding { return findingOf(ref, err, isSecret(ref)) }

// findingOf is finding for an object with values that nobody should read, if delicate: the API server quotes what it does
// not like.
func findingOf(ref Ref, err error, delicate bool) Finding {
	var s apierrors.APIStatus
	if !errors.As(err, &s) {
		return Finding{ref, Unavailable, err.Error()}
	}
	st := s.Status()
	msg := strings.TrimSpace(st.Message)
	switch {
	case hasCause(st, "NamespaceTerminating"):
		return Finding{ref, Terminating, fmt.Sprintf("namespace %q is being deleted", ref.Namespace)}
	case strings.Contains(msg, "admission webhook") || strings.Contains(msg, "failed calling webhook"):
		if who, _, ok := strings.Cut(msg, " denied the request"); ok && delicate {
			msg = who + " denied the request (details are withheld: they may quote a secret)"
		}
		return Finding{ref, Rejected, msg}
	case apierrors.IsForbidden(err):
		_, why, ok := strings.Cut(msg, " is forbidden: ")
		if !ok {
			why = msg
		}
		return Finding{ref, Forbidden, "forbidden: " + why}
	case isUnknownResource(st):
		return Finding{ref, UnknownKind, fmt.Sprintf("no matches for kind %q in version %q (is its CRD installed?)", ref.Kind, apiVersion(ref))}
	case apierrors.IsNotFound(err) && st.Details != nil && st.Details.Kind == "namespaces":
		return Finding{ref, NoNamespace, fmt.Sprintf("namespace %q does not exist: add it to the bundle as an object; createNamespace makes only the bundle's own namespace", ref.Namespace)}
	case apierrors.IsInvalid(err):
		return invalid(ref, st, delicate)
	case apierrors.IsConflict(err):
		return Finding{ref, Conflict, "changed by somebody else at the same moment: " + msg}
	case says(msg, undecodable):
		if _, tail, ok := strings.Cut(msg, "): "); ok { // what precedes repeats the object's name
			msg = tail
		}
		return Finding{ref, Invalid, "invalid: " + msg}
	case apierrors.IsBadRequest(err), apierrors.IsRequestEntityTooLargeError(err):
		return Finding{ref, Invalid, "invalid: " + redact(delicate, msg)}
	}
	return Finding{ref, Unavailable, redact(delicate, msg)}
}

// immutableSays are the words by which API servers and CRD rules refuse a change in place; there is no code for it. A rule may
// have any other words: see [Applier.refused].
var immutableSays = []string{
	"immutable", "may not be changed", "cannot be changed", "may not change", "cannot change", "are forbidden", "may not be modified",
	"cannot be modified", "oldSelf",
}

// undecodable answers come as plain 500s. They name fields and types, never values.
var undecodable = []string{"field not declared in schema", "failed to create typed patch object", "unable to convert unstructured object", "cannot unmarshal"}

func invalid(ref Ref, st metav1.Status, delicate bool) Finding {
	var immutable, other []string
	if st.Details != nil {
		for _, c := range st.Details.Causes {
			field := c.Field
			if field == "<nil>" || field == "" {
				field = "object"
			}
			if says(c.Message, immutableSays) {
				immutable = append(immutable, field)
			} else {
				other = append(other, field+": "+redact(delicate, short(c.Message, 160)))
			}
		}
	}
	switch {
	case len(other) > 0:
		return Finding{ref, Invalid, "invalid: " + strings.Join(other[:min(3, len(other))], "; ")}
	case len(immutable) > 0:
		return Finding{ref, Immutable, strings.Join(immutable, ", ") + " is immutable"}
	}
	return Finding{ref, Invalid, "invalid: " + redact(delicate, short(st.Message, 300))}
}

func says(msg string, any []string) bool {
	for _, s := range any {
		if strings.Contains(msg, s) {
			return true
		}
	}
	return false
}

func redact(delicate bool, msg string) string {
	if delicate {
		return "the API server refuses it (details are withheld: they may quote the secret)"
	}
	return msg
}

func isSecret(ref Ref) bool { return ref.Group == "" && ref.Kind == "Secret" }

// isUnknownResource tells "there is no such API" from "there is no such object": only the latter names one.
func isUnknownResource(st metav1.Status) bool {
	return st.Reason == metav1.StatusReasonNotFound && (st.Details == nil || st.Details.Name == "" ||
		hasCause(st, metav1.CauseTypeUnexpectedServerResponse))
}

func hasCause(st metav1.Status, t metav1.CauseType) bool {
	if st.Details == nil {
		return false
	}
	for _, c := range st.Details.Causes {
		if c.Type == t {
			return true
		}
	}
	return false
}

func apiVersion(r Ref) string {
	if r.Group == "" {
		return r.Version
	}
	return r.Group + "/" + r.Version
}

func short(s string, n int) string {
	if r := []rune(s); len(r) > n {
		return string(r[:n]) + "…"
	}
	return s
}
