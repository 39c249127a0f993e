package mqtttest

import (
	"errors"
	"strings"
	"sync"

	"shoal.dev/shoal/internal/mqtt"
)

// Auth is an Authenticator from a table, for tests: the user name is the identity.
type Auth struct {
	mu    sync.Mutex
	Users map[string]User
}

// User is what an identity may do. An empty list allows nothing.
type User struct {
	Password string
	ClientID string   // if set, the only client id this user may have; else any that starts with the user name
	Allow    []string // filters: publishing to topics that match, subscribing to filters that they cover
}

// Authenticate implements mqtt.Authenticator.
func (a *Auth) Authenticate(c mqtt.Connect) (mqtt.Session, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	u, ok := a.Users[c.Username]
	switch {
	case !ok || u.Password != string(c.Password):
		return nil, errors.New("unknown user or wrong password")
	case u.ClientID != "" && u.ClientID != c.ClientID, !strings.HasPrefix(c.ClientID, c.Username):
		return nil, errors.New("client id does not belong to this user")
	}
	return session{c.Username, u.Allow}, nil
}

// Remove takes a user out.
func (a *Auth) Remove(name string) {
	a.mu.Lock()
	defer a.mu.Unlock()
	delete(a.Users, name)
}

type session struct {
	name  string
	allow []string
}

func (s session) Identity() string { return s.name }

func (s session) Allowed(_ mqtt.Action, topic string) bool {
	for _, f := range s.allow {
		if covers(f, topic) {
			return true
		}
	}
	return false
}

// covers says whether everything that inner can match is matched by outer.
func covers(outer, inner string) bool {
	o, i := strings.Split(outer, "/"), strings.Split(inner, "/")
	for n, l := range o {
		switch {
		case l == "#":
			return true
		case n >= len(i) || i[n] == "#":
			return false
		case l != "+" && l != i[n]:
			return false
		}
	}
	return len(o) == len(i)
}
