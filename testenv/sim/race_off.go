//go:build !race

package sim

// race says that the test runs under the race detector; so does its conductor.
const race = false
