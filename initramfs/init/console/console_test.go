package console_test

import (
	"bufio"
	"io"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/slipway-metal/slipway/initramfs/init/console"
)

func TestLinesReachAllConsolesWithTheirTime(t *testing.T) {
	var screen, serial strings.Builder
	l := console.New(time.Now().Add(-3*time.Second), &screen, &serial)
	l.Printf("disk %s", "vda")
	l.Line("as it is")
	l.Flush(time.Minute)
	want := regexp.MustCompile(`^slipway: \[ +\d+\.\d\d\] disk vda\nas it is\n$`)
	for _, got := range []string{screen.String(), serial.String()} {
		if !want.MatchString(got) {
			t.Errorf("console shows %q", got)
		}
	}
}

// A serial line held by flow control must not hold PID 1; when it lets go,
// whoever looks is told that something is missing.
func TestAConsoleThatBlocksHoldsNobody(t *testing.T) {
	read, write := io.Pipe() // nobody reads yet
	l := console.New(time.Now(), write)
	for range 2000 {
		l.Printf("a line")
	}
	l.Flush(time.Millisecond)
	lines := bufio.NewScanner(read)
	for lines.Scan() {
		if strings.Contains(lines.Text(), "lines were dropped") {
			return
		}
	}
	t.Error("nobody was told that lines were dropped")
}
