package osimage

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/klauspost/compress/zstd"
)

// Options says where an image is built.
type Options struct {
	Cache string // directory of everything that is kept between builds
	Guest string // path of the static binary of package osimage/guest
	Log   func(format string, args ...any)
}

// Image is a finished image: the same disk in three forms.
type Image struct {
	Name   string            `json:"name"`
	Key    string            `json:"key"`   // hash of the recipe and all that went in
	Bytes  int64             `json:"bytes"` // of the raw disk
	Built  time.Time         `json:"built"`
	Files  map[string]string `json:"files"`  // form ("raw", "zst", "qcow2") to file name
	SHA256 map[string]string `json:"sha256"` // form to digest of the file, hexadecimal
	Dir    string            `json:"-"`
}

// Path is the file of one form.
func (i Image) Path(form string) string { return filepath.Join(i.Dir, i.Files[form]) }

// tools are the programs a build needs and the Debian packages they are in.
var tools = map[string]string{
	"mmdebstrap": "mmdebstrap", "mke2fs": "e2fsprogs", "mkfs.vfat": "dosfstools", "mcopy": "mtools", "mmd": "mtools",
	"grub-mkimage": "grub-common", "qemu-img": "qemu-utils", "tar": "tar", "sh": "dash",
}

// MissingTools is what a build cannot do without.
type MissingTools struct{ Packages []string }

func (m *MissingTools) Error() string {
	return "these Debian packages are missing: " + strings.Join(m.Packages, " ")
}

func checkTools() error {
	missing := make(map[string]bool)
	for tool, pkg := range tools {
		if _, err := exec.LookPath(tool); err != nil {
			missing[pkg] = true
		}
	}
	for dir, pkg := range map[string]string{grubBIOS: "grub-pc-bin", grubEFI: "grub-efi-amd64-bin"} {
		if _, err := os.Stat(dir); err != nil {
			missing[pkg] = true
		}
	}
	if rootMode() == "unshare" {
		if _, err := exec.LookPath("newuidmap"); err != nil {
			missing["uidmap"] = true
		}
	}
	if len(missing) == 0 {
		return nil
	}
	m := &MissingTools{}
	for pkg := range missing {
		m.Packages = append(m.Packages, pkg)
	}
	slices.Sort(m.Packages)
	return m
}

// Build returns the image of a recipe, from the cache if nothing that goes
// into it has changed. The first build of a recipe takes some minutes, most of
// it in fetching and unpacking Debian's packages.
func Build(ctx context.Context, r Recipe, opts Options) (Image, error) {
	guest, err := os.ReadFile(opts.Guest)
	if err != nil {
		return Image{}, fmt.Errorf("image %s: the guest's own program: %w", r.Name, err)
	}
	sum := sha256.Sum256(guest)
	id, err := key(struct {
		Recipe Recipe
		Guest  string
	}{r, hex.EncodeToString(sum[:])}, "overlay", "script")
	if err != nil {
		return Image{}, fmt.Errorf("image %s: %w", r.Name, err)
	}
	dir := filepath.Join(opts.Cache, "images", r.Name)
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return Image{}, fmt.Errorf("image %s: %w", r.Name, err)
	}
	unlock, err := lockBuild(filepath.Join(opts.Cache, "images", r.Name+".lock"))
	if err != nil {
		return Image{}, fmt.Errorf("image %s: %w", r.Name, err)
	}
	defer unlock()
	if img, ok := cached(dir, r.Name, id); ok {
		return img, nil
	}
	if err := checkTools(); err != nil {
		return Image{}, err
	}
	b := &builder{recipe: r, opts: opts, dir: dir}
	img, err := b.build(ctx, id)
	if err != nil {
		return Image{}, fmt.Errorf("image %s: %w", r.Name, err)
	}
	return img, nil
}

// lockBuild lets one process at a time build an image.
func lockBuild(path string) (unlock func(), err error) {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_RDWR, 0o644)
	if err != nil {
		return nil, err
	}
	if err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX); err != nil {
		_ = f.Close()
		return nil, fmt.Errorf("lock %s: %w", path, err)
	}
	return func() { _ = f.Close() }, nil
}

// cached returns the image that is there, if it is the one wanted and whole.
func cached(dir, name, id string) (Image, bool) {
	var img Image
	data, err := os.ReadFile(filepath.Join(dir, name+".json"))
	if err != nil || json.Unmarshal(data, &img) != nil || img.Key != id {
		return Image{}, false
	}
	img.Dir = dir
	for form := range img.Files {
		if _, err := os.Stat(img.Path(form)); err != nil {
			return Image{}, false
		}
	}
	return img, true
}

type builder struct {
	recipe Recipe
	opts   Options
	dir    string // where the result goes
	work   string // what is thrown away
}

func (b *builder) logf(format string, args ...any) {
	if b.opts.Log != nil {
		b.opts.Log(format, args...)
	}
}

func (b *builder) build(ctx context.Context, id string) (img Image, err error) {
	// The description goes first and comes back last: an image without one is not used.
	if err := os.Remove(filepath.Join(b.dir, b.recipe.Name+".json")); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return Image{}, err
	}
	if b.work, err = os.MkdirTemp(b.opts.Cache, "build-"+b.recipe.Name+"-*"); err != nil {
		return Image{}, err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(b.work)) }()
	tree, err := b.tree(ctx)
	if err != nil {
		return Image{}, err
	}
	b.logf("put the disk together")
	raw := filepath.Join(b.work, b.recipe.Name+".raw")
	if err := b.disk(ctx, tree, raw, id); err != nil {
		return Image{}, err
	}
	b.logf("compress it")
	return b.publish(ctx, raw, id)
}

// tree returns the tar file of Debian's packages, made once a set of packages.
func (b *builder) tree(ctx context.Context) (string, error) {
	id, err := b.recipe.treeKey()
	if err != nil {
		return "", err
	}
	path := filepath.Join(b.opts.Cache, "tree-"+id+".tar")
	if _, err := os.Stat(path); err == nil {
		return path, nil
	}
	b.logf("fetch and unpack Debian's packages (a minute or two)")
	made := filepath.Join(b.work, "tree.tar")
	packages := strings.Join(append(append([]string{}, b.recipe.Packages...), b.recipe.Kernel), ",")
	script, err := files.ReadFile("script/tree.sh")
	if err != nil {
		return "", err
	}
	if err := b.run(ctx, "sh", "-c", string(script), "tree.sh", b.recipe.Suite, packages, rootMode(), made); err != nil {
		return "", err
	}
	return path, os.Rename(made, path)
}

// rootMode is how mmdebstrap becomes root for the files it makes.
func rootMode() string {
	if os.Geteuid() == 0 {
		return "root"
	}
	return "unshare"
}

// root makes the root filesystem at path, as the root that owns the tree's files.
func (b *builder) root(ctx context.Context, tree string, overlay []byte, path string, uuid string) (err error) {
	script, err := files.ReadFile("script/root.sh")
	if err != nil {
		return err
	}
	argv := append([]string{"sh", "-c", string(script), "root.sh", kib(b.rootBytes()), uuid}, b.recipe.Mask...)
	if rootMode() == "unshare" {
		argv = append([]string{"mmdebstrap", "--unshare-helper"}, argv...)
	}
	in, err := os.Open(tree)
	if err != nil {
		return err
	}
	defer func() { _ = in.Close() }()
	out, err := os.Create(path)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, out.Close()) }()
	cmd := b.command(ctx, argv[0], argv[1:]...)
	if rootMode() == "root" {
		cmd.Env = append(cmd.Env, "TMPDIR="+b.work)
	}
	cmd.Stdin, cmd.Stdout = io.MultiReader(in, bytes.NewReader(overlay)), out
	return finish(cmd)
}

// run runs a program to its end.
func (b *builder) run(ctx context.Context, name string, args ...string) error {
	return finish(b.command(ctx, name, args...))
}

// command is a program in a process group of its own, which ends with ctx.
func (b *builder) command(ctx context.Context, name string, args ...string) *exec.Cmd {
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.Env = append(os.Environ(), "LC_ALL=C.UTF-8", "MTOOLS_SKIP_CHECK=1")
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	cmd.Cancel = func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGTERM) }
	cmd.WaitDelay = 10 * time.Second
	return cmd
}

// finish runs a program; what it printed is in the error.
func finish(cmd *exec.Cmd) error {
	var said bytes.Buffer
	cmd.Stderr = &said
	if cmd.Stdout == nil {
		cmd.Stdout = &said
	}
	if err := cmd.Run(); err != nil {
		text := bytes.TrimSpace(said.Bytes())
		return fmt.Errorf("%s: %w: %s", filepath.Base(cmd.Path), err, text[max(0, len(text)-2000):])
	}
	return nil
}

// publish makes the other forms, moves all to their place and describes them.
func (b *builder) publish(ctx context.Context, raw, id string) (Image, error) {
	name := b.recipe.Name
	img := Image{
		Name: name, Key: id, Bytes: b.recipe.Bytes, Built: time.Now().UTC().Truncate(time.Second), Dir: b.dir,
		Files:  map[string]string{"raw": name + ".raw", "zst": name + ".raw.zst", "qcow2": name + ".qcow2"},
		SHA256: make(map[string]string),
	}
	zst := filepath.Join(b.work, img.Files["zst"])
	var err error
	if img.SHA256["raw"], img.SHA256["zst"], err = compress(raw, zst); err != nil {
		return Image{}, fmt.Errorf("compress: %w", err)
	}
	qcow2 := filepath.Join(b.work, img.Files["qcow2"])
	if err := b.run(ctx, "qemu-img", "convert", "-f", "raw", "-O", "qcow2", "-c", raw, qcow2); err != nil {
		return Image{}, err
	}
	if img.SHA256["qcow2"], err = digest(qcow2); err != nil {
		return Image{}, err
	}
	for form, file := range img.Files {
		line := img.SHA256[form] + "  " + file + "\n"
		if err := os.WriteFile(filepath.Join(b.dir, file+".sha256"), []byte(line), 0o644); err != nil {
			return Image{}, err
		}
		if err := os.Rename(filepath.Join(b.work, file), img.Path(form)); err != nil {
			return Image{}, err
		}
	}
	data, err := json.MarshalIndent(img, "", "  ")
	if err != nil {
		return Image{}, err
	}
	return img, os.WriteFile(filepath.Join(b.dir, name+".json"), append(data, '\n'), 0o644)
}

// compress writes path's bytes to zst as one zstd stream and returns the
// digests of both.
func compress(path, zst string) (rawSum, zstSum string, err error) {
	in, err := os.Open(path)
	if err != nil {
		return "", "", err
	}
	defer func() { _ = in.Close() }()
	out, err := os.Create(zst)
	if err != nil {
		return "", "", err
	}
	defer func() { err = errors.Join(err, out.Close()) }()
	rawHash, zstHash := sha256.New(), sha256.New()
	enc, err := zstd.NewWriter(io.MultiWriter(out, zstHash), zstd.WithEncoderLevel(zstd.SpeedBetterCompression))
	if err != nil {
		return "", "", err
	}
	if _, err := io.Copy(io.MultiWriter(enc, rawHash), in); err != nil {
		return "", "", errors.Join(err, enc.Close())
	}
	if err := enc.Close(); err != nil {
		return "", "", err
	}
	return hex.EncodeToString(rawHash.Sum(nil)), hex.EncodeToString(zstHash.Sum(nil)), nil
}

func digest(path string) (string, error) {
	f, err := os.Open(path)
	if err != nil {
		return "", err
	}
	defer func() { _ = f.Close() }()
	h := sha256.New()
	if _, err := io.Copy(h, f); err != nil {
		return "", err
	}
	return hex.EncodeToString(h.Sum(nil)), nil
}

func kib(n int64) string { return strconv.FormatInt(n>>10, 10) }
