package serve

import (
	"fmt"
	"io/fs"
)

// etag changes with a file's content as far as its size and time of change
// (nanoseconds) tell, so that a download is never resumed in another file.
func etag(st fs.FileInfo) string {
	return fmt.Sprintf(`"%x-%x"`, st.Size(), st.ModTime().UnixNano())
}
