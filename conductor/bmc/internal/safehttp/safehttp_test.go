package safehttp_test

import (
	"context"
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/slipway-metal/slipway/conductor/bmc/internal/safehttp"
)

func get(t *testing.T, c *safehttp.Client, h http.HandlerFunc) (string, error) {
	t.Helper()
	s := httptest.NewServer(h)
	t.Cleanup(s.Close)
	t.Cleanup(c.CloseIdle)
	resp, err := c.HTTP().Get(s.URL)
	if err != nil {
		return "", err
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	return string(body), err
}

func TestAnAnswerUpToTheLimit(t *testing.T) {
	for size, ok := range map[int]bool{0: true, 1000: true, 1001: false} {
		body, err := get(t, safehttp.New(time.Second, 1000, nil), func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, strings.Repeat("x", size)) })
		if ok && (err != nil || len(body) != size) || !ok && !errors.Is(err, safehttp.ErrTooLarge) {
			t.Errorf("%d bytes: %d read, error %v", size, len(body), err)
		}
	}
}

func TestASlowBodyIsSlowToo(t *testing.T) {
	_, err := get(t, safehttp.New(50*time.Millisecond, 1000, nil), func(w http.ResponseWriter, r *http.Request) {
		_, _ = io.WriteString(w, "{")
		w.(http.Flusher).Flush()
		<-r.Context().Done()
	})
	if !errors.Is(err, safehttp.ErrSlow) {
		t.Error(err)
	}
}

func TestTheCallersContextEndsAnExchange(t *testing.T) {
	c := safehttp.New(time.Minute, 1000, nil)
	ctx, cancel := context.WithCancel(t.Context())
	c.Use(ctx)
	_, err := get(t, c, func(_ http.ResponseWriter, r *http.Request) { cancel(); <-r.Context().Done() })
	if !errors.Is(err, context.Canceled) || errors.Is(err, safehttp.ErrSlow) {
		t.Error(err)
	}
}

func TestRedirects(t *testing.T) {
	var leaked string
	other := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) { leaked = r.Header.Get("X-Auth-Token") + "visited" }))
	t.Cleanup(other.Close)
	_, err := get(t, safehttp.New(time.Second, 1000, nil), func(w http.ResponseWriter, r *http.Request) { http.Redirect(w, r, other.URL, http.StatusFound) })
	if !errors.Is(err, safehttp.ErrRedirect) || leaked != "" {
		t.Errorf("error %v, the other host saw %q", err, leaked)
	}
	body, err := get(t, safehttp.New(time.Second, 1000, nil), func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path != "/there" {
			http.Redirect(w, r, "/there", http.StatusFound)
			return
		}
		_, _ = io.WriteString(w, "here")
	})
	if err != nil || body != "here" {
		t.Errorf("within a host: %q, error %v", body, err)
	}
	_, err = get(t, safehttp.New(time.Second, 1000, nil), func(w http.ResponseWriter, r *http.Request) { http.Redirect(w, r, "/again", http.StatusFound) })
	if !errors.Is(err, safehttp.ErrRedirect) {
		t.Errorf("in a circle: %v", err)
	}
}
