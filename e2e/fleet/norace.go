//go:build !race

package fleet

// raceEnabled: this program was built with -race.
const raceEnabled = false
