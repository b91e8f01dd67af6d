package bmc

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"path"
	"slices"
)

// media are the fields of DSP0268's VirtualMedia that the driver uses.
type media struct {
	path, etag string

	MediaTypes []string
	Image      string
	ImageName  string
	Inserted   bool
	Actions    struct {
		Insert struct {
			Target string `json:"target"`
		} `json:"#VirtualMedia.InsertMedia"`
		Eject struct {
			Target string `json:"target"`
		} `json:"#VirtualMedia.EjectMedia"`
	}
}

func (m *media) has(image string) bool {
	if image == "" {
		return !m.Inserted || m.Image == "" && m.ImageName == ""
	}
	// Some BMCs show the file's name only.
	return m.Inserted && (m.Image == image || m.Image == "" && m.ImageName == path.Base(image))
}

// findCD reads the first drive for CDs, of the system (Redfish 1.13 and later) or
// of its managers. Call it in do.
func (r *redfish) findCD() (*media, error) {
	s, err := r.readSystem()
	if err != nil {
		return nil, err
	}
	lists := []string{s.VirtualMedia.ID}
	for _, m := range s.Links.ManagedBy {
		var manager struct{ VirtualMedia ref }
		if _, err := r.get(m.ID, &manager); err != nil {
			return nil, err
		}
		lists = append(lists, manager.VirtualMedia.ID)
	}
	for _, list := range lists {
		if list == "" {
			continue
		}
		var drives members
		if _, err := r.get(list, &drives); err != nil {
			return nil, err
		}
		for _, d := range drives.Members[:min(len(drives.Members), 16)] {
			m := &media{path: d.ID}
			if m.etag, err = r.get(d.ID, m); err != nil {
				return nil, err
			}
			if slices.Contains(m.MediaTypes, "CD") || slices.Contains(m.MediaTypes, "DVD") {
				return m, nil
			}
		}
	}
	return nil, &Error{
		Class: ErrUnsupported, Address: r.in.address, Op: "find the virtual CD drive",
		Cause: errors.New("the BMC shows none"), Next: "check the BMC's licence, or boot by the network",
	}
}

// checkImageURL refuses what a BMC cannot fetch, and what it must not: its own files.
func checkImageURL(image string) error {
	u, err := url.Parse(image)
	if err != nil || u.Host == "" || u.Scheme != "http" && u.Scheme != "https" {
		return errors.New("the image is not at an http or https URL")
	}
	return nil
}

// Media implements VirtualMedia.
func (r *redfish) Media(ctx context.Context) (image string, err error) {
	err = r.do(ctx, "read virtual medium", func() error {
		m, err := r.findCD()
		if err == nil && m.Inserted {
			if image = m.Image; image == "" {
				image = m.ImageName
			}
		}
		return err
	})
	return image, err
}

// InsertMedia implements VirtualMedia.
func (r *redfish) InsertMedia(ctx context.Context, image string) error {
	const op = "insert virtual medium"
	if err := checkImageURL(image); err != nil {
		return &Error{Class: ErrInvalid, Address: r.in.address, Op: op, Cause: err}
	}
	return r.setMedia(ctx, op, image)
}

// EjectMedia implements VirtualMedia.
func (r *redfish) EjectMedia(ctx context.Context) error {
	return r.setMedia(ctx, "eject virtual medium", "")
}

func (r *redfish) setMedia(ctx context.Context, op, image string) error {
	there, err := r.attempt(ctx, op, func() (bool, error) {
		m, err := r.findCD()
		if err != nil {
			return false, err
		}
		if m.has(image) {
			return true, nil
		}
		if m.Inserted {
			if err := r.eject(m); err != nil {
				return false, err
			}
		}
		if image == "" {
			return false, nil
		}
		return false, r.insert(m, image)
	})
	if err != nil || there {
		return err
	}
	there, err = r.poll(ctx, r.opt.Timeouts.Settle, func() (done bool, err error) {
		err = r.do(ctx, op, func() error {
			m, err := r.findCD()
			if err == nil {
				done = m.has(image)
			}
			return err
		})
		return done, err
	})
	switch {
	case there:
		return nil
	case err != nil:
		return r.explain(op, err)
	}
	return &Error{
		Class: ErrIgnored, Address: r.in.address, Op: op,
		Cause: fmt.Errorf("the drive shows no change after %s", r.opt.Timeouts.Settle),
		Next:  "check that the BMC reaches the image's web server; restart the BMC if it stays",
	}
}

func (r *redfish) insert(m *media, image string) error {
	full := struct {
		Image          string
		Inserted       bool
		WriteProtected bool
	}{image, true, true}
	if m.Actions.Insert.Target == "" {
		return r.patch(m.path, "", full) // services before VirtualMedia 1.2 have no action
	}
	err := r.post(m.Actions.Insert.Target, full)
	if status(err) == http.StatusBadRequest {
		// Only Image is required by DSP0268; some BMCs refuse the others.
		err = r.post(m.Actions.Insert.Target, struct{ Image string }{image})
	}
	return err
}

func (r *redfish) eject(m *media) error {
	if m.Actions.Eject.Target == "" {
		return r.patch(m.path, "", struct {
			Image    *string
			Inserted bool
		}{})
	}
	return r.post(m.Actions.Eject.Target, struct{}{})
}
