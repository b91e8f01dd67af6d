package fakebmc

import (
	"encoding/json"
	"net/http"
	"net/url"
	"path"
)

func (b *BMC) mediaDoc(id string) doc {
	b.mu.Lock()
	defer b.mu.Unlock()
	d := doc{
		"@odata.type": "#VirtualMedia.v1_6_3.VirtualMedia", "@odata.id": id, "Id": "Cd", "Name": "Virtual CD",
		"MediaTypes": []string{"CD", "DVD"}, "Inserted": b.image != "", "WriteProtected": true,
		"TransferMethod": "Stream", "ConnectedVia": "NotConnected", "Image": nil, "ImageName": nil,
		"Actions": doc{
			"#VirtualMedia.InsertMedia": doc{"target": id + "/Actions/VirtualMedia.InsertMedia"},
			"#VirtualMedia.EjectMedia":  doc{"target": id + "/Actions/VirtualMedia.EjectMedia"},
		},
	}
	if b.image != "" {
		d["Image"], d["ImageName"], d["ConnectedVia"] = b.image, path.Base(b.image), "URI"
	}
	return d
}

func (b *BMC) insertMedia(w http.ResponseWriter, r *http.Request) {
	var in struct{ Image string }
	if err := json.NewDecoder(r.Body).Decode(&in); err != nil {
		fail(w, http.StatusBadRequest, "Base.1.18.MalformedJSON", "The request body submitted was malformed JSON.")
		return
	}
	u, err := url.Parse(in.Image)
	if err != nil || u.Host == "" || u.Scheme != "http" && u.Scheme != "https" {
		fail(w, http.StatusBadRequest, "Base.1.18.ActionParameterValueFormatError", "The value for the parameter Image is not an http or https URL.")
		return
	}
	b.setMedia(w, r, in.Image)
}

func (b *BMC) ejectMedia(w http.ResponseWriter, r *http.Request) { b.setMedia(w, r, "") }

func (b *BMC) setMedia(w http.ResponseWriter, r *http.Request, image string) {
	m := b.machine.(MediaMachine) // routes has the action for such machines only
	if !b.fault().IgnoreMedia {
		b.calls.Lock()
		var err error
		if image == "" {
			err = m.EjectMedia(r.Context())
		} else {
			err = m.InsertMedia(r.Context(), image)
		}
		b.calls.Unlock()
		if err != nil {
			internal(w, err)
			return
		}
		b.mu.Lock()
		b.image = image
		b.mu.Unlock()
	}
	w.WriteHeader(http.StatusNoContent)
}
