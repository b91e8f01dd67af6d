package fakebmc

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"net/http"
	"slices"
	"strings"
)

const (
	root         = "/redfish/v1"
	sessionsPath = root + "/SessionService/Sessions"
	managerPath  = root + "/Managers/bmc"
	chassisPath  = root + "/Chassis/chassis"
)

// doc is a Redfish resource.
type doc map[string]any

func link(path string) doc { return doc{"@odata.id": path} }

func links(paths ...string) []doc {
	out := make([]doc, 0, len(paths))
	for _, p := range paths {
		out = append(out, link(p))
	}
	return out
}

func collection(path, kind, name string, members ...string) doc {
	slices.Sort(members)
	return doc{
		"@odata.type": "#" + kind + "." + kind, "@odata.id": path, "Name": name,
		"Members@odata.count": len(members), "Members": links(members...),
	}
}

func etag(body []byte) string {
	sum := sha256.Sum256(body)
	return `"` + hex.EncodeToString(sum[:8]) + `"`
}

// reply writes d; broken cuts it in the middle.
func reply(w http.ResponseWriter, status int, d doc, broken bool) {
	body, err := json.Marshal(d)
	if err != nil {
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return
	}
	w.Header().Set("Content-Type", "application/json")
	w.Header().Set("ETag", etag(body))
	if broken {
		body = body[:len(body)/2]
	}
	w.WriteHeader(status)
	_, _ = w.Write(body) // the client left: nobody to tell
}

// fail answers as DSP0266 8.6 (error responses) has it.
func fail(w http.ResponseWriter, status int, id, message string) {
	reply(w, status, doc{"error": doc{
		"code": id, "message": message,
		"@Message.ExtendedInfo": []doc{{"MessageId": id, "Message": message, "Severity": "Critical", "Resolution": "None."}},
	}}, false)
}

func notFound(w http.ResponseWriter, r *http.Request) {
	fail(w, http.StatusNotFound, "Base.1.18.ResourceMissingAtURI", "The resource at the URI "+r.URL.Path+" was not found.")
}

func (b *BMC) systemPath() string { return root + "/Systems/" + b.cfg.UUID }

// routes is the table of what is served. Paths end with and without a slash.
func (b *BMC) routes() *http.ServeMux {
	mux := http.NewServeMux()
	get := func(path string, make func(*http.Request) doc) {
		h := func(w http.ResponseWriter, r *http.Request) {
			d := make(r)
			if d == nil {
				notFound(w, r)
				return
			}
			reply(w, http.StatusOK, d, b.fault().Malformed)
		}
		mux.HandleFunc("GET "+path, h)
		mux.HandleFunc("GET "+path+"/{$}", h)
	}
	is := func(d doc) func(*http.Request) doc { return func(*http.Request) doc { return d } }
	sys := b.systemPath()

	get("/redfish", is(doc{"v1": root + "/"}))
	get(root, func(*http.Request) doc { return b.rootDoc() })
	mux.HandleFunc("GET "+root+"/$metadata", metadata)
	get(root+"/SessionService", func(*http.Request) doc {
		if b.fault().NoSessions {
			return nil
		}
		return doc{
			"@odata.type": "#SessionService.v1_1_9.SessionService", "@odata.id": root + "/SessionService", "Id": "SessionService",
			"Name": "Session Service", "ServiceEnabled": true, "SessionTimeout": 1800, "Sessions": link(sessionsPath),
		}
	})
	mux.HandleFunc("POST "+sessionsPath, b.createSession)
	mux.HandleFunc("POST "+sessionsPath+"/{$}", b.createSession)
	mux.HandleFunc("GET "+sessionsPath, b.listSessions)
	mux.HandleFunc("GET "+sessionsPath+"/{id}", b.getSession)
	mux.HandleFunc("DELETE "+sessionsPath+"/{id}", b.deleteSession)

	members := []string{sys}
	for _, id := range b.cfg.OtherSystems {
		members = append(members, root+"/Systems/"+id)
	}
	get(root+"/Systems", is(collection(root+"/Systems", "ComputerSystemCollection", "Systems", members...)))
	mux.HandleFunc("GET "+sys, b.getSystem)
	mux.HandleFunc("PATCH "+sys, b.patchSystem)
	mux.HandleFunc("POST "+sys+"/Actions/ComputerSystem.Reset", b.postReset)
	b.nics(get)

	get(root+"/Managers", is(collection(root+"/Managers", "ManagerCollection", "Managers", managerPath)))
	get(managerPath, is(b.managerDoc()))
	get(root+"/Chassis", is(collection(root+"/Chassis", "ChassisCollection", "Chassis", chassisPath)))
	get(chassisPath, is(b.chassisDoc()))
	get(root+"/TaskService", is(doc{
		"@odata.type": "#TaskService.v1_2_1.TaskService", "@odata.id": root + "/TaskService", "Id": "TaskService",
		"Name": "Task Service", "ServiceEnabled": true, "Tasks": link(root + "/TaskService/Tasks"),
	}))
	get(root+"/TaskService/Tasks", is(collection(root+"/TaskService/Tasks", "TaskCollection", "Tasks")))
	if _, ok := b.machine.(MediaMachine); ok {
		for _, owner := range []string{managerPath, sys} {
			path := owner + "/VirtualMedia"
			get(path, is(collection(path, "VirtualMediaCollection", "Virtual Media", path+"/Cd")))
			get(path+"/Cd", func(*http.Request) doc { return b.mediaDoc(path + "/Cd") })
			mux.HandleFunc("POST "+path+"/Cd/Actions/VirtualMedia.InsertMedia", b.insertMedia)
			mux.HandleFunc("POST "+path+"/Cd/Actions/VirtualMedia.EjectMedia", b.ejectMedia)
		}
	}
	mux.HandleFunc("/", func(w http.ResponseWriter, r *http.Request) {
		if r.Method != http.MethodGet && r.Method != http.MethodHead {
			fail(w, http.StatusMethodNotAllowed, "Base.1.18.OperationNotAllowed", r.Method+" is not allowed on "+r.URL.Path+".")
			return
		}
		notFound(w, r)
	})
	return mux
}

func (b *BMC) rootDoc() doc {
	d := doc{
		"@odata.type": "#ServiceRoot.v1_16_0.ServiceRoot", "@odata.id": root + "/", "Id": "RootService", "Name": "Root Service",
		"RedfishVersion": "1.18.0", "UUID": b.cfg.UUID, "Vendor": b.cfg.Manufacturer, "Product": "fakebmc",
		"Systems": link(root + "/Systems"), "Managers": link(root + "/Managers"), "Chassis": link(root + "/Chassis"),
		"Tasks": link(root + "/TaskService"),
	}
	if !b.fault().NoSessions {
		d["SessionService"] = link(root + "/SessionService")
		d["Links"] = doc{"Sessions": link(sessionsPath)}
	}
	return d
}

// metadata is the least that OData clients read: the container.
func metadata(w http.ResponseWriter, _ *http.Request) {
	w.Header().Set("Content-Type", "application/xml")
	_, _ = w.Write([]byte(`<?xml version="1.0" encoding="UTF-8"?>
<edmx:Edmx xmlns:edmx="http://docs.oasis-open.org/odata/ns/edmx" Version="4.0">
 <edmx:DataServices>
  <Schema xmlns="http://docs.oasis-open.org/odata/ns/edm" Namespace="Service">
   <EntityContainer Name="Service" Extends="ServiceRoot.v1_16_0.ServiceContainer"/>
  </Schema>
 </edmx:DataServices>
</edmx:Edmx>
`))
}

func (b *BMC) managerDoc() doc {
	d := doc{
		"@odata.type": "#Manager.v1_19_0.Manager", "@odata.id": managerPath, "Id": "bmc", "Name": "Manager of " + b.cfg.Name,
		"ManagerType": "BMC", "FirmwareVersion": "1.0", "Status": doc{"State": "Enabled", "Health": "OK"},
		"Links": doc{
			"ManagerForServers": links(b.systemPath()), "ManagerForChassis": links(chassisPath),
		},
	}
	if _, ok := b.machine.(MediaMachine); ok {
		d["VirtualMedia"] = link(managerPath + "/VirtualMedia")
	}
	return d
}

func (b *BMC) chassisDoc() doc {
	return doc{
		"@odata.type": "#Chassis.v1_25_0.Chassis", "@odata.id": chassisPath, "Id": "chassis", "Name": "Chassis of " + b.cfg.Name,
		"ChassisType": "RackMount", "Manufacturer": b.cfg.Manufacturer, "Model": b.cfg.Model, "SerialNumber": b.cfg.Serial,
		"Links": doc{"ComputerSystems": links(b.systemPath()), "ManagedBy": links(managerPath)},
	}
}

func (b *BMC) nics(get func(string, func(*http.Request) doc)) {
	path := b.systemPath() + "/EthernetInterfaces"
	var ids []string
	for _, mac := range b.cfg.MACs {
		id := strings.ToLower(mac)
		ids = append(ids, path+"/"+id)
		d := doc{
			"@odata.type": "#EthernetInterface.v1_12_1.EthernetInterface", "@odata.id": path + "/" + id, "Id": id,
			"Name": "NIC " + id, "MACAddress": mac, "PermanentMACAddress": mac, "Status": doc{"State": "Enabled", "Health": "OK"},
		}
		get(path+"/"+id, func(*http.Request) doc { return d })
	}
	get(path, func(*http.Request) doc {
		return collection(path, "EthernetInterfaceCollection", "NICs", slices.Clone(ids)...)
	})
}
