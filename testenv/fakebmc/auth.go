package fakebmc

import (
	"crypto/rand"
	"crypto/subtle"
	"encoding/json"
	"fmt"
	"net/http"
	"strings"
)

type session struct{ token, user string }

// open are the paths that DSP0266 13.3.1 serves without credentials.
func open(r *http.Request) bool {
	switch strings.TrimSuffix(r.URL.Path, "/") {
	case "/redfish", "/redfish/v1", "/redfish/v1/$metadata", "/redfish/v1/odata":
		return r.Method == http.MethodGet || r.Method == http.MethodHead
	case sessionsPath, sessionsPath + "/Members":
		return r.Method == http.MethodPost
	}
	return false
}

func same(a, b string) bool { return subtle.ConstantTimeCompare([]byte(a), []byte(b)) == 1 }

// authorised says whether r may be served; it counts wrong credentials.
func (b *BMC) authorised(r *http.Request) bool {
	if b.cfg.Username == "" && b.cfg.Password == "" {
		return true
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	if open(r) && (!b.faults.AuthEverywhere || r.Method == http.MethodPost) {
		return true
	}
	if token := r.Header.Get("X-Auth-Token"); token != "" {
		if b.faults.RefuseAuth {
			return false
		}
		for _, s := range b.sessions {
			if same(s.token, token) {
				return true
			}
		}
		return false
	}
	user, password, ok := r.BasicAuth()
	if !ok {
		return false
	}
	if b.faults.RefuseAuth || !same(user, b.cfg.Username) || !same(password, b.cfg.Password) {
		b.stats.FailedLogins++
		return false
	}
	return true
}

// ExpireSessions ends every session, as a BMC's own restart does.
func (b *BMC) ExpireSessions() {
	b.mu.Lock()
	defer b.mu.Unlock()
	clear(b.sessions)
}

// SetPassword changes the password and ends every session.
func (b *BMC) SetPassword(password string) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.cfg.Password = password
	clear(b.sessions)
}

func (b *BMC) createSession(w http.ResponseWriter, r *http.Request) {
	var in struct{ UserName, Password string }
	if err := json.NewDecoder(r.Body).Decode(&in); err != nil {
		fail(w, http.StatusBadRequest, "Base.1.18.MalformedJSON", "The request body submitted was malformed JSON.")
		return
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	secured := b.cfg.Username != "" || b.cfg.Password != ""
	switch {
	case b.faults.NoSessions:
		fail(w, http.StatusNotFound, "Base.1.18.ResourceMissingAtURI", "The resource at the URI was not found.")
		return
	case b.faults.RefuseAuth, secured && (!same(in.UserName, b.cfg.Username) || !same(in.Password, b.cfg.Password)):
		b.stats.FailedLogins++
		msg := "There is no valid session established with the implementation."
		if b.faults.EchoCredentials {
			msg = fmt.Sprintf("login of %s with password %s refused", in.UserName, in.Password)
		}
		fail(w, http.StatusUnauthorized, "Base.1.18.NoValidSession", msg)
		return
	case b.faults.MaxSessions > 0 && len(b.sessions) >= b.faults.MaxSessions:
		fail(w, http.StatusServiceUnavailable, "Base.1.18.SessionLimitExceeded",
			"The session establishment failed due to the number of simultaneous sessions exceeding the limit of the implementation.")
		return
	}
	b.nextID++
	b.stats.Logins++
	id, token := fmt.Sprint(b.nextID), rand.Text()
	b.sessions[id] = session{token: token, user: in.UserName}
	w.Header().Set("X-Auth-Token", token)
	w.Header().Set("Location", sessionsPath+"/"+id)
	reply(w, http.StatusCreated, b.sessionDoc(id, in.UserName), false)
}

func (b *BMC) sessionDoc(id, user string) doc {
	return doc{
		"@odata.type": "#Session.v1_7_0.Session",
		"@odata.id":   sessionsPath + "/" + id,
		"Id":          id, "Name": "Session " + id, "UserName": user,
	}
}

func (b *BMC) deleteSession(w http.ResponseWriter, r *http.Request) {
	b.mu.Lock()
	defer b.mu.Unlock()
	id := r.PathValue("id")
	if _, ok := b.sessions[id]; !ok {
		notFound(w, r)
		return
	}
	delete(b.sessions, id)
	w.WriteHeader(http.StatusNoContent)
}

func (b *BMC) listSessions(w http.ResponseWriter, r *http.Request) {
	b.mu.Lock()
	defer b.mu.Unlock()
	var ids []string
	for id := range b.sessions {
		ids = append(ids, sessionsPath+"/"+id)
	}
	reply(w, http.StatusOK, collection(sessionsPath, "SessionCollection", "Sessions", ids...), b.faults.Malformed)
}

func (b *BMC) getSession(w http.ResponseWriter, r *http.Request) {
	b.mu.Lock()
	defer b.mu.Unlock()
	id := r.PathValue("id")
	s, ok := b.sessions[id]
	if !ok {
		notFound(w, r)
		return
	}
	reply(w, http.StatusOK, b.sessionDoc(id, s.user), b.faults.Malformed)
}
