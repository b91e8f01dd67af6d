// Package lab runs virtual machines with BMCs of their own in a network of
// their own, described by a small file. `slipway-lab` is its command line; a
// Go test uses it like this:
//
//	func TestMain(m *testing.M) {
//		lab.Reexec() // the supervisor is this very program, started again
//		os.Exit(m.Run())
//	}
//
//	func TestDeploy(t *testing.T) {
//		spec, err := lab.Load("../labs/demo.yaml")
//		…
//		l, err := lab.Start(t.Context(), spec, lab.Options{Dir: t.TempDir()})
//		…
//		t.Cleanup(func() { l.Close() })
//		conductor := l.Command(ctx, "bin/slipway", "serve", …) // an *exec.Cmd inside the lab's network
//		…
//		node := l.Machine("node-1")
//		err = node.PowerOn(ctx)
//		line, err := node.WaitConsole(ctx, regexp.MustCompile(`slipway-guest: ready`))
//	}
//
// A program that must not be started again that way (it cannot call Reexec
// first thing) sets Options.Supervisor to the path of bin/slipway-lab.
//
// # How a lab is made
//
// Start runs a supervisor, a process in a network namespace of its own (and a
// user namespace, when it is not root). The supervisor builds the bridges and
// tap devices, serves each machine's BMC on the bridge's address, starts and
// stops QEMU when the BMC is told to, and answers on a unix socket in the lab's
// directory. Nothing of the host's network is touched, and two labs with the
// same addresses can run side by side.
//
// # How a lab ends
//
// Everything ends with the supervisor: QEMU by the kernel's parent-death
// signal (also after kill -9), the devices with the namespace. Close, SIGINT
// and SIGTERM end it in order; a lab started without Options.Detach also ends
// when the program that started it does, however that happens. An orderly end
// also ends every other process inside the namespace, such as a conductor
// started with Command.
//
// # Files
//
// A lab's directory holds lab.json (what was asked), control.sock, lock (held
// while the lab runs), supervisor.log, ssh/ (a key pair for the machines'
// systems) and, a machine, machines/NAME/ with disks, UEFI variables,
// console.log, events.jsonl and qemu.log.
package lab
