package main

import (
	"crypto/ed25519"
	"crypto/rand"
	"encoding/base64"
	"encoding/binary"
	"encoding/pem"
	"errors"
	"fmt"
	"os"
)

const keyType = "ssh-ed25519"

// makeHostKey writes an SSH host key and its public half beside it, unless
// there is one. ssh-keygen would spend a second without KVM on loading OpenSSL.
func makeHostKey(path string) error {
	if _, err := os.Stat(path); err == nil {
		return nil
	} else if !errors.Is(err, os.ErrNotExist) {
		return err
	}
	public, private, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		return fmt.Errorf("make the host key: %w", err)
	}
	line := keyType + " " + base64.StdEncoding.EncodeToString(publicBlob(public)) + " slipway-lab\n"
	if err := os.WriteFile(path+".pub", []byte(line), 0o644); err != nil {
		return fmt.Errorf("make the host key: %w", err)
	}
	block := pem.EncodeToMemory(&pem.Block{Type: "OPENSSH PRIVATE KEY", Bytes: privateBlob(public, private)})
	if err := os.WriteFile(path, block, 0o600); err != nil {
		return fmt.Errorf("make the host key: %w", err)
	}
	return nil
}

func sshString[S ~string | ~[]byte](to []byte, s S) []byte {
	return append(binary.BigEndian.AppendUint32(to, uint32(len(s))), s...)
}

// publicBlob is RFC 8709's form of a key.
func publicBlob(public ed25519.PublicKey) []byte {
	return sshString(sshString(nil, keyType), public)
}

// privateBlob is OpenSSH's own form (PROTOCOL.key), without encryption.
func privateBlob(public ed25519.PublicKey, private ed25519.PrivateKey) []byte {
	var secret []byte
	secret = binary.BigEndian.AppendUint32(secret, 0) // twice the same number shows
	secret = binary.BigEndian.AppendUint32(secret, 0) // that the decryption was right
	secret = sshString(secret, keyType)
	secret = sshString(secret, public)
	secret = sshString(secret, private)
	secret = sshString(secret, "slipway-lab")
	for pad := byte(1); len(secret)%8 != 0; pad++ {
		secret = append(secret, pad)
	}
	blob := []byte("openssh-key-v1\x00")
	blob = sshString(blob, "none") // cipher
	blob = sshString(blob, "none") // key derivation
	blob = sshString(blob, "")     // and its options
	blob = binary.BigEndian.AppendUint32(blob, 1)
	blob = sshString(blob, publicBlob(public))
	return sshString(blob, secret)
}
