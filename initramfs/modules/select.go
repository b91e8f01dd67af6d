package modules

import (
	"fmt"
	"maps"
	"slices"
	"strings"
)

// Picked is a module chosen for the ramdisk, with its contents.
type Picked struct {
	Module
	Info
	Image []byte // uncompressed
}

// Selection is a closed set of modules: everything that a module in it depends
// on is in it too, or built into the kernel.
type Selection struct {
	Modules []Picked // sorted by path
	// BuiltIn are the asked-for modules that the kernel has built in.
	BuiltIn []string
}

// Select resolves patterns over a kernel's modules. A pattern is
//
//	virtio_net               one module, which must exist or be built in
//	?mpi3mr                  the same, and no error if the kernel has none
//	drivers/net/ethernet/    all modules under this directory, at least one
//	!drivers/net/phy/        none of those, also by name; dependencies stay
//
// Dependencies of what is picked are added; soft dependencies too when the
// kernel has them as modules.
func Select(all map[string]Module, builtin map[string]bool, patterns []string) (*Selection, error) {
	names, builtInNames, err := resolve(all, builtin, patterns)
	if err != nil {
		return nil, err
	}
	sel := &Selection{BuiltIn: builtInNames}
	seen := make(map[string]bool)
	queue := names
	for len(queue) > 0 {
		name := queue[0]
		queue = queue[1:]
		if seen[name] || builtin[name] {
			continue
		}
		seen[name] = true
		m, ok := all[name]
		if !ok {
			return nil, fmt.Errorf("module %s is needed by another one and the kernel package has no such module", name)
		}
		image, err := m.Read()
		if err != nil {
			return nil, err
		}
		info, err := ParseInfo(image)
		if err != nil {
			return nil, fmt.Errorf("module %s: %w", m.Path, err)
		}
		queue = append(queue, info.Depends...)
		for _, soft := range slices.Concat(info.SoftPre, info.SoftPost) {
			if _, there := all[soft]; there {
				queue = append(queue, soft)
			}
		}
		sel.Modules = append(sel.Modules, Picked{Module: m, Info: info, Image: image})
	}
	slices.SortFunc(sel.Modules, func(a, b Picked) int { return strings.Compare(a.Path, b.Path) })
	return sel, nil
}

// resolve turns patterns into names of modules and of built-in ones.
func resolve(all map[string]Module, builtin map[string]bool, patterns []string) (names, builtInNames []string, err error) {
	excluded := func(m Module) bool {
		return slices.ContainsFunc(patterns, func(p string) bool {
			not, ok := strings.CutPrefix(p, "!")
			return ok && (strings.HasSuffix(not, "/") && strings.HasPrefix(m.Path, "kernel/"+not) || Canonical(not) == m.Name)
		})
	}
	picked := make(map[string]bool)
	for _, p := range patterns {
		if strings.HasPrefix(p, "!") {
			continue
		}
		if strings.HasSuffix(p, "/") {
			n := 0
			for _, m := range all {
				if strings.HasPrefix(m.Path, "kernel/"+p) && !excluded(m) {
					picked[m.Name] = true
					n++
				}
			}
			if n == 0 {
				return nil, nil, fmt.Errorf("no module lies under %s: correct the flavor's list for this kernel", p)
			}
			continue
		}
		optional := strings.HasPrefix(p, "?")
		name := Canonical(strings.TrimPrefix(p, "?"))
		_, isModule := all[name]
		switch {
		case isModule:
			picked[name] = true
		case builtin[name]:
			builtInNames = append(builtInNames, name)
		case !optional:
			return nil, nil, fmt.Errorf("the kernel has no module %s, neither built in nor loadable: correct the flavor's list for this kernel (a leading ? makes it optional)", name)
		}
	}
	slices.Sort(builtInNames)
	return slices.Sorted(maps.Keys(picked)), builtInNames, nil
}

// DepFile is modules.dep(5) for the selection: paths are relative to the
// directory it lies in, dependencies are the direct ones (whoever loads
// follows them).
func (s *Selection) DepFile() []byte {
	paths := make(map[string]string, len(s.Modules))
	for _, m := range s.Modules {
		paths[m.Name] = m.Path
	}
	var b strings.Builder
	for _, m := range s.Modules {
		b.WriteString(m.Path + ":")
		for _, dep := range m.Depends {
			if p, ok := paths[dep]; ok { // else built in
				b.WriteString(" " + p)
			}
		}
		b.WriteString("\n")
	}
	return []byte(b.String())
}

// AliasFile is modules.alias for the selection: only lines whose module is in.
func (s *Selection) AliasFile() []byte {
	var lines []string
	for _, m := range s.Modules {
		for _, a := range m.Aliases {
			lines = append(lines, "alias "+a+" "+m.Name+"\n")
		}
	}
	slices.Sort(lines)
	return []byte(strings.Join(slices.Compact(lines), ""))
}

// SoftdepFile is modules.softdep for the selection, with extra rules
// ("ipmi_si post: ipmi_devintf") of the flavor added.
func (s *Selection) SoftdepFile(extra []string) []byte {
	have := make(map[string]bool, len(s.Modules))
	for _, m := range s.Modules {
		have[m.Name] = true
	}
	var b strings.Builder
	for _, m := range s.Modules {
		pre := slices.DeleteFunc(slices.Clone(m.SoftPre), func(n string) bool { return !have[n] })
		post := slices.DeleteFunc(slices.Clone(m.SoftPost), func(n string) bool { return !have[n] })
		if len(pre)+len(post) == 0 {
			continue
		}
		b.WriteString("softdep " + m.Name)
		if len(pre) > 0 {
			b.WriteString(" pre: " + strings.Join(pre, " "))
		}
		if len(post) > 0 {
			b.WriteString(" post: " + strings.Join(post, " "))
		}
		b.WriteString("\n")
	}
	for _, rule := range extra {
		b.WriteString("softdep " + rule + "\n")
	}
	return []byte(b.String())
}

// Firmware lists the files the selected modules may ask for, sorted.
func (s *Selection) Firmware() []string {
	files := make(map[string]bool)
	for _, m := range s.Modules {
		for _, f := range m.Info.Firmware {
			files[f] = true
		}
	}
	return slices.Sorted(maps.Keys(files))
}
