// Judge checks a certificate with other people's code: Go's golang.org/x/mod/sumdb/note and sumdb/tlog, which run the checksum database
// of Go modules. It shares nothing with Sunder but the files.
//
//	judge KEY_FILE CERTIFICATE_FOLDER [LOG_FOLDER]
//
// CERTIFICATE_FOLDER is what `sunder certificate CASE --out DIR` writes, LOG_FOLDER what `sunder certificate log --out DIR` writes.
// It exits 0 where everything holds, 1 where something does not.
package main

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/mod/sumdb/note"
	"golang.org/x/mod/sumdb/tlog"
)

// tileHeight is that of C2SP tlog-tiles: 256 hashes to a tile.
const tileHeight = 8

func main() {
	if len(os.Args) != 3 && len(os.Args) != 4 {
		fmt.Fprintln(os.Stderr, "usage: judge KEY_FILE CERTIFICATE_FOLDER [LOG_FOLDER]")
		os.Exit(2)
	}
	if err := judge(os.Args[1], os.Args[2], os.Args[3:]); err != nil {
		fmt.Println("NOT VALID:", err)
		os.Exit(1)
	}
}

func judge(keyFile, folder string, logs []string) error {
	key, err := os.ReadFile(keyFile)
	if err != nil {
		return err
	}
	verifier, err := note.NewVerifier(strings.TrimSuffix(string(key), "\n"))
	if err != nil {
		return fmt.Errorf("the key: %w", err)
	}
	known := note.VerifierList(verifier)
	text, err := openFile(filepath.Join(folder, "certificate.note"), known)
	if err != nil {
		return fmt.Errorf("the note: %w", err)
	}
	statement, err := os.ReadFile(filepath.Join(folder, "certificate.json"))
	if err != nil {
		return err
	}
	if !bytes.Equal(statement, []byte(text)) {
		return errors.New("certificate.json is not the text of the note")
	}
	fmt.Println("note: signed by", verifier.Name())

	leaf := tlog.RecordHash([]byte(text))
	index, old, err := inclusion(folder, known, leaf)
	if err != nil {
		return fmt.Errorf("inclusion: %w", err)
	}
	fmt.Printf("inclusion: leaf %d of a log of %d\n", index, old.N)
	newest, err := consistency(folder, known, old)
	if err != nil {
		return fmt.Errorf("consistency: %w", err)
	}
	fmt.Printf("consistency: the log of %d is the beginning of the log of %d\n", old.N, newest.N)
	for _, folder := range logs {
		if err := tiles(folder, known, index, leaf, []tlog.Tree{old, newest}); err != nil {
			return fmt.Errorf("tiles: %w", err)
		}
		fmt.Println("tiles: leaf and both heads are in the log")
	}
	return nil
}

func openFile(path string, known note.Verifiers) (string, error) {
	signed, err := os.ReadFile(path)
	if err != nil {
		return "", err
	}
	return open(signed, known)
}

func open(signed []byte, known note.Verifiers) (string, error) {
	opened, err := note.Open(signed, known)
	if err != nil {
		return "", err
	}
	if len(opened.UnverifiedSigs) > 0 {
		return "", errors.New("a signature by somebody else")
	}
	return opened.Text, nil
}

// head reads a C2SP checkpoint: origin, size, root.
func head(text string) (tlog.Tree, error) {
	lines := strings.Split(text, "\n")
	if len(lines) != 4 || lines[3] != "" {
		return tlog.Tree{}, errors.New("not a checkpoint")
	}
	size, err := strconv.ParseInt(lines[1], 10, 64)
	if err != nil {
		return tlog.Tree{}, errors.New("not a checkpoint's size")
	}
	root, err := tlog.ParseHash(lines[2])
	return tlog.Tree{N: size, Hash: root}, err
}

func hashes(lines []string) ([]tlog.Hash, error) {
	var path []tlog.Hash
	for _, line := range lines {
		hash, err := tlog.ParseHash(line)
		if err != nil {
			return nil, err
		}
		// tlog reads past the unused bits at the end of a base64 text.
		if hash.String() != line {
			return nil, errors.New("a hash is not written as it must be")
		}
		path = append(path, hash)
	}
	return path, nil
}

// numbered reads the line "<word> <number>".
func numbered(line, word string) (int64, error) {
	if !strings.HasPrefix(line, word+" ") {
		return 0, fmt.Errorf("no line %q", word)
	}
	return strconv.ParseInt(strings.TrimPrefix(line, word+" "), 10, 64)
}

// inclusion checks certificate.proof (C2SP tlog-proof).
func inclusion(folder string, known note.Verifiers, leaf tlog.Hash) (int64, tlog.Tree, error) {
	var tree tlog.Tree
	file, err := os.ReadFile(filepath.Join(folder, "certificate.proof"))
	if err != nil {
		return 0, tree, err
	}
	front, signed, found := strings.Cut(string(file), "\n\n")
	lines := strings.Split(front, "\n")
	if !found || len(lines) < 2 || lines[0] != "c2sp.org/tlog-proof@v1" {
		return 0, tree, errors.New("not a proof")
	}
	index, err := numbered(lines[1], "index")
	if err != nil {
		return 0, tree, err
	}
	path, err := hashes(lines[2:])
	if err != nil {
		return 0, tree, err
	}
	text, err := open([]byte(signed), known)
	if err != nil {
		return 0, tree, err
	}
	if tree, err = head(text); err != nil {
		return 0, tree, err
	}
	return index, tree, tlog.CheckRecord(path, tree.N, tree.Hash, index, leaf)
}

// consistency checks certificate.consistency between the head of the proof and certificate.checkpoint.
func consistency(folder string, known note.Verifiers, old tlog.Tree) (tlog.Tree, error) {
	text, err := openFile(filepath.Join(folder, "certificate.checkpoint"), known)
	if err != nil {
		return tlog.Tree{}, err
	}
	newest, err := head(text)
	if err != nil {
		return newest, err
	}
	file, err := os.ReadFile(filepath.Join(folder, "certificate.consistency"))
	if err != nil {
		return newest, err
	}
	lines := strings.Split(strings.TrimSuffix(string(file), "\n"), "\n")
	if len(lines) < 2 || lines[0] != "sunder-consistency/1" {
		return newest, errors.New("not a consistency file")
	}
	from, err := numbered(lines[1], "from")
	if err != nil {
		return newest, err
	}
	if from != old.N {
		return newest, errors.New("the consistency file begins at another head")
	}
	path, err := hashes(lines[2:])
	if err != nil {
		return newest, err
	}
	return newest, tlog.CheckTree(path, newest.N, newest.Hash, old.N, old.Hash)
}

// reader reads the tiles of a log's folder.
type reader struct{ folder string }

func (r reader) Height() int { return tileHeight }

func (r reader) SaveTiles([]tlog.Tile, [][]byte) {}

func (r reader) ReadTiles(wanted []tlog.Tile) ([][]byte, error) {
	var read [][]byte
	for _, tile := range wanted {
		// C2SP leaves the height out of the path.
		path := strings.Replace(tile.Path(), "tile/8/", "tile/", 1)
		bytes, err := os.ReadFile(filepath.Join(r.folder, filepath.FromSlash(path)))
		if err != nil {
			return nil, err
		}
		read = append(read, bytes)
	}
	return read, nil
}

// tiles proves the leaf and the heads anew from the log's own tiles.
func tiles(folder string, known note.Verifiers, index int64, leaf tlog.Hash, heads []tlog.Tree) error {
	text, err := openFile(filepath.Join(folder, "checkpoint"), known)
	if err != nil {
		return err
	}
	whole, err := head(text)
	if err != nil {
		return err
	}
	hashes := tlog.TileHashReader(whole, reader{folder})
	path, err := tlog.ProveRecord(whole.N, index, hashes)
	if err != nil {
		return err
	}
	if err := tlog.CheckRecord(path, whole.N, whole.Hash, index, leaf); err != nil {
		return err
	}
	for _, head := range heads {
		path, err := tlog.ProveTree(whole.N, head.N, hashes)
		if err != nil {
			return err
		}
		if err := tlog.CheckTree(path, whole.N, whole.Hash, head.N, head.Hash); err != nil {
			return err
		}
	}
	return nil
}
