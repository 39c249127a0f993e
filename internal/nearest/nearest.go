// Package nearest finds what a misspelt word may have meant.
package nearest

import (
	"slices"
	"strings"
)

// Word is the known word most like an unknown one, or "" if none is alike.
func Word(word string, known []string) string {
	best, dist := "", 1+max(1, len(word)/3)
	for _, k := range slices.Sorted(slices.Values(known)) {
		if strings.EqualFold(k, word) {
			return k
		}
		if d := distance(word, k); d < dist {
			best, dist = k, d
		}
	}
	return best
}

// distance counts the single-letter changes between two words.
func distance(a, b string) int {
	if len(a) > 64 {
		return len(a)
	}
	row := make([]int, len(b)+1)
	for j := range row {
		row[j] = j
	}
	for i := range len(a) {
		diag := row[0]
		row[0] = i + 1
		for j := range len(b) {
			cost := diag
			if a[i] != b[j] {
				cost++
			}
			diag = row[j+1]
			row[j+1] = min(cost, row[j]+1, diag+1)
		}
	}
	return row[len(b)]
}
