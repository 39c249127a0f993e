package mqtt

import (
	"fmt"
	"strings"
	"unicode/utf8"
)

// maxTopic is the longest topic or filter that is accepted. The design stays under 128 bytes; AWS IoT allows 256.
const maxTopic = 1024

// CheckTopic says why topic is no valid topic name for a publish, or nil. MQTT 5 §4.7.3; topics that start with $
// belong to the broker.
func CheckTopic(topic string) error {
	if err := checkString(topic); err != nil {
		return fmt.Errorf("topic %q: %w", clip(topic), err)
	}
	if strings.ContainsAny(topic, "+#") {
		return fmt.Errorf("topic %q: %w: a topic name must not contain + or #", clip(topic), ErrInvalidTopic)
	}
	if topic[0] == '$' {
		return fmt.Errorf("topic %q: %w: names that start with $ belong to the broker", clip(topic), ErrInvalidTopic)
	}
	return nil
}

// CheckFilter says why filter is no valid topic filter, or nil. MQTT 5 §4.7.1. Shared subscriptions and filters on
// topics of the broker ($…) are refused.
func CheckFilter(filter string) error {
	if err := checkString(filter); err != nil {
		return fmt.Errorf("filter %q: %w", clip(filter), err)
	}
	if filter[0] == '$' {
		return fmt.Errorf("filter %q: %w: filters that start with $ are not supported", clip(filter), ErrInvalidTopic)
	}
	levels := strings.Split(filter, "/")
	for i, l := range levels {
		switch {
		case l == "+" || !strings.ContainsAny(l, "+#"):
		case l == "#" && i == len(levels)-1:
		default:
			return fmt.Errorf("filter %q: %w: + and # must fill a level, # only the last", clip(filter), ErrInvalidTopic)
		}
	}
	return nil
}

func checkString(s string) error {
	switch {
	case s == "":
		return fmt.Errorf("%w: empty", ErrInvalidTopic)
	case len(s) > maxTopic:
		return fmt.Errorf("%w: %d bytes, limit %d", ErrInvalidTopic, len(s), maxTopic)
	case !utf8.ValidString(s):
		return fmt.Errorf("%w: not UTF-8", ErrInvalidTopic)
	}
	for _, r := range s {
		if r < 0x20 || r >= 0x7f && r <= 0x9f || r == 0xfeff || r&0xfffe == 0xfffe || r >= 0xfdd0 && r <= 0xfdef {
			return fmt.Errorf("%w: holds the control character or non-character %U", ErrInvalidTopic, r)
		}
	}
	return nil
}

// clip keeps error texts and logs short when a hostile client chose the topic.
func clip(s string) string {
	if len(s) > 100 {
		return s[:100] + "…"
	}
	return s
}

// Match says whether a topic name matches a valid filter. MQTT 5 §4.7: "a/#" matches "a", wildcards at the first level
// do not match topics that start with $.
func Match(filter, topic string) bool {
	if topic == "" || topic[0] == '$' && filter[0] != '$' {
		return false
	}
	for {
		f, frest, fmore := strings.Cut(filter, "/")
		if f == "#" {
			return true
		}
		t, trest, tmore := strings.Cut(topic, "/")
		if f != "+" && f != t {
			return false
		}
		switch {
		case fmore && tmore:
			filter, topic = frest, trest
		case fmore:
			return frest == "#"
		default:
			return !tmore
		}
	}
}
