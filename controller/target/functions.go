package target

import (
	"errors"
	"fmt"
	"math"
	"reflect"
	"regexp"
	"slices"
	"strings"
	"text/template"
	"unicode"

	"github.com/Masterminds/sprig/v3"
)

// Functions of our own. bound puts printed, or printedYAML, behind everything a template prints: they note it and change nothing.
// nextPart ends a part.
const (
	printed     = "shoal_printed"
	printedYAML = "shoal_printed_yaml"
	nextPart    = "shoal_next"
)

// taken are functions of sprig that read the hub's own environment or the network, or that are not there in Fleet either.
var taken = []string{"env", "expandenv", "include", "tpl", "getHostByName", "hello"}

// unsteady are functions of sprig that give something else every time, or elsewhere. They are refused: a release that
// differs from pass to pass would be deployed for ever, and one that is made from a fixed seed can be guessed.
var unsteady = []string{
	"ago", "date", "date_in_zone", "date_modify", "dateInZone", "dateModify", "durationRound", "htmlDate", "htmlDateInZone",
	"must_date_modify", "mustDateModify", "mustToDate", "now", "toDate", "unixEpoch",
	"randAlphaNum", "randAlpha", "randAscii", "randNumeric", "randInt", "randBytes", "shuffle", "uuidv4",
	"bcrypt", "htpasswd", "encryptAES", "genPrivateKey", "genCA", "genCAWithKey", "genSelfSignedCert", "genSelfSignedCertWithKey",
	"genSignedCert", "genSignedCertWithKey",
}

// functions returns those functions that a template names, counted by the meter.
func (m *meter) functions(source string) template.FuncMap {
	all := sprig.GenericFuncMap()
	for _, n := range taken {
		delete(all, n)
	}
	for _, n := range unsteady {
		all[n] = func(...any) (any, error) {
			return nil, errors.New("it gives something else every time, so the bundle would be deployed for ever; put the value into the cluster's spec.templateValues, or into a Secret on the site that helm.valuesFrom names")
		}
	}
	all["keys"], all["values"] = keys, values
	all["print"], all["printf"], all["println"] = fmt.Sprint, printf, fmt.Sprintln
	all["html"], all["js"], all["urlquery"] = template.HTMLEscaper, template.JSEscaper, template.URLQueryEscaper
	named := template.FuncMap{
		printed:     m.wrap(printed, func(v any) any { return m.print(v, false) }),
		printedYAML: m.wrap(printedYAML, func(v any) any { return m.print(v, true) }),
		nextPart:    func() partEnds { return partEnds{} },
	}
	for _, w := range strings.FieldsFunc(source, func(r rune) bool { return r != '_' && !unicode.IsLetter(r) && !unicode.IsDigit(r) }) {
		if f, ok := all[w]; ok && named[w] == nil {
			named[w] = m.wrap(w, f)
		}
	}
	return named
}

// keys and values are sprig's in a fixed order; sprig's own is another at every call.
func keys(dicts ...map[string]any) []string {
	var out []string
	for _, d := range dicts {
		for k := range d {
			out = append(out, k)
		}
	}
	slices.Sort(out)
	return out
}

func values(d map[string]any) []any {
	out := make([]any, 0, len(d))
	for _, k := range keys(d) {
		out = append(out, d[k])
	}
	return out
}

// wide finds widths and precisions by which printf would make long texts of short ones, and addresses.
var wide = regexp.MustCompile(`%[^a-zA-Z%]*(\*|\d{4,}|p)`)

func printf(format string, args ...any) (string, error) {
	if wide.MatchString(format) {
		return "", fmt.Errorf("format %.80q: widths are limited to 999, and neither * nor %%p can be used", format)
	}
	return fmt.Sprintf(format, args...), nil
}

// slow is made to take its time: a template can afford it four times.
const slow = "derivePassword"

// amplifies says how much functions make, or have to do, where that is more than in proportion to what they are given.
var amplifies = map[string]func([]reflect.Value) int{
	"repeat":  func(a []reflect.Value) int { return times(a[0].Int(), a[1].Len()) },
	"indent":  indented,
	"nindent": indented,
	"replace": func(a []reflect.Value) int {
		return times(int64(strings.Count(a[2].String(), a[0].String())), a[1].Len())
	},
	"regexReplaceAll":            replaced,
	"regexReplaceAllLiteral":     replaced,
	"mustRegexReplaceAll":        replaced,
	"mustRegexReplaceAllLiteral": replaced,
	"wrapWith":                   func(a []reflect.Value) int { return times(int64(a[1].Len())+1, a[2].Len()+1) },
	"join":                       func(a []reflect.Value) int { return times(int64(a[0].Len())+1, length(a[1])) },
	"until":                      func(a []reflect.Value) int { return times(abs(a[0].Int()), 8) },
	"untilStep":                  func(a []reflect.Value) int { return steps(a[0].Int(), a[1].Int(), a[2].Int()) },
	"seq": func(a []reflect.Value) int {
		switch len(a) {
		case 1:
			return steps(1, a[0].Int(), 1)
		case 2:
			return steps(a[0].Int(), a[1].Int(), 1)
		case 3:
			return steps(a[0].Int(), a[2].Int(), a[1].Int())
		}
		return 0
	},
	"uniq":     func(a []reflect.Value) int { return times(int64(length(a[0])), length(a[0])) },
	"mustUniq": func(a []reflect.Value) int { return times(int64(length(a[0])), length(a[0])) },
}

func replaced(a []reflect.Value) int { return times(int64(a[1].Len())+1, a[2].Len()) }

func indented(a []reflect.Value) int {
	return times(abs(a[0].Int()), 1+strings.Count(a[1].String(), "\n"))
}

func steps(from, to, by int64) int {
	if by == 0 {
		return 0
	}
	return times(abs(to/2-from/2)/max(1, abs(by)), 16)
}

func length(v reflect.Value) int {
	for v.Kind() == reflect.Interface {
		v = v.Elem()
	}
	if v.Kind() == reflect.Slice || v.Kind() == reflect.Array {
		return v.Len()
	}
	return 1
}

func abs(n int64) int64 {
	if n < 0 {
		return -max(n, -math.MaxInt64)
	}
	return n
}

// times multiplies without going around.
func times(a int64, b int) int {
	if a <= 0 || b <= 0 {
		return 0
	}
	if a > maxWeight || int64(b) > maxWeight {
		return maxWeight + 1
	}
	return int(a) * b
}
