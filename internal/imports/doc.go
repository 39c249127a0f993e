// Package imports holds the rules on who may import whom as tests; see docs/architecture.md for the reasons. It contains no
// code.
package imports
