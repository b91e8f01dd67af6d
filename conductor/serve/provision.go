package serve

import (
	"fmt"
	"io/fs"
	"net/http"
	"os"
	"strings"

	"github.com/go-chi/chi/v5"
)

// provisioning is what machines without credentials may reach: boot files,
// images, and the calls of agents, which prove themselves by nonce and token.
// Everything else of the API is not there.
func provisioning(api, boot http.Handler, images string) http.Handler {
	r := chi.NewRouter()
	for _, pattern := range []string{"/", "/v1", "/v1/", "/v1/lookup", "/v1/lookup/"} {
		r.Get(pattern, api.ServeHTTP)
	}
	r.Post("/v1/heartbeat/{node}", api.ServeHTTP)
	r.Post("/v1/continue_inspection", api.ServeHTTP)
	r.Post("/slipway/v1/agent/{node}/events", api.ServeHTTP)
	r.Mount("/boot", boot)
	if images != "" {
		r.Handle("/images/*", http.StripPrefix("/images/", imageFiles(images)))
	}
	return r
}

// imageFiles serves the regular files of dir, with ranges, and lists nothing.
// os.Root keeps names and links inside it.
func imageFiles(dir string) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		name := strings.TrimPrefix(r.URL.Path, "/")
		root, err := os.OpenRoot(dir)
		if err != nil {
			http.Error(w, "image directory is not there", http.StatusServiceUnavailable)
			return
		}
		defer root.Close()
		f, err := root.Open(name)
		if err != nil {
			http.NotFound(w, r)
			return
		}
		defer f.Close()
		st, err := f.Stat()
		if err != nil || !st.Mode().IsRegular() {
			http.NotFound(w, r)
			return
		}
		w.Header().Set("Content-Type", "application/octet-stream")
		w.Header().Set("ETag", etag(st))
		http.ServeContent(w, r, "", st.ModTime(), f)
	})
}

// etag changes with a file's content as far as its size and time of change
// (nanoseconds) tell, so that a download is never resumed in another file.
func etag(st fs.FileInfo) string {
	return fmt.Sprintf(`"%x-%x"`, st.Size(), st.ModTime().UnixNano())
}
