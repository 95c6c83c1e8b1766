// Command protogen writes the Go code of .proto files beside them. It does what protoc with protoc-gen-go does, but
// needs no binary from outside the Go module proxy, so generated code can be checked wherever Go runs.
//
//	protogen [-check] -root FOLDER FILE.proto...
//
// Files are named relative to the root, which is also where their imports start. With -check nothing is written: the
// command fails if a generated file differs from what it would write.
package main

import (
	"bytes"
	"context"
	"flag"
	"fmt"
	"os"
	"path/filepath"

	"github.com/bufbuild/protocompile"
	"github.com/bufbuild/protocompile/protoutil"
	"google.golang.org/protobuf/cmd/protoc-gen-go/internal_gengo"
	"google.golang.org/protobuf/compiler/protogen"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/types/pluginpb"
)

func main() {
	root := flag.String("root", ".", "`folder` that the files and their imports are relative to")
	check := flag.Bool("check", false, "compare instead of writing")
	flag.Parse()
	if err := run(*root, flag.Args(), *check); err != nil {
		fmt.Fprintln(os.Stderr, "protogen:", err)
		os.Exit(1)
	}
}

func run(root string, files []string, check bool) error {
	generated, err := generate(root, files)
	if err != nil {
		return err
	}
	for _, file := range generated {
		path := filepath.Join(root, file.GetName())
		if check {
			err = compare(path, file.GetContent())
		} else {
			err = os.WriteFile(path, []byte(file.GetContent()), 0o644)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// generate compiles the files and returns the Go code of each.
func generate(root string, files []string) ([]*pluginpb.CodeGeneratorResponse_File, error) {
	compiler := protocompile.Compiler{
		Resolver:       protocompile.WithStandardImports(&protocompile.SourceResolver{ImportPaths: []string{root}}),
		SourceInfoMode: protocompile.SourceInfoStandard, // The comments become Go's.
	}
	compiled, err := compiler.Compile(context.Background(), files...)
	if err != nil {
		return nil, err
	}
	request := &pluginpb.CodeGeneratorRequest{
		FileToGenerate: files,
		Parameter:      proto.String("paths=source_relative"),
	}
	for _, file := range compiled {
		addFile(request, file)
	}
	plugin, err := protogen.Options{}.New(request)
	if err != nil {
		return nil, err
	}
	for _, file := range plugin.Files {
		if file.Generate {
			internal_gengo.GenerateFile(plugin, file)
		}
	}
	response := plugin.Response()
	if response.Error != nil {
		return nil, fmt.Errorf("generating: %s", response.GetError())
	}
	return response.File, nil
}

// addFile adds a file after all that it imports, the order that generators expect, unless it is there already.
func addFile(request *pluginpb.CodeGeneratorRequest, file protoreflect.FileDescriptor) {
	for _, added := range request.ProtoFile {
		if added.GetName() == file.Path() {
			return
		}
	}
	for i := range file.Imports().Len() {
		addFile(request, file.Imports().Get(i).FileDescriptor)
	}
	request.ProtoFile = append(request.ProtoFile, protoutil.ProtoFromFileDescriptor(file))
}

func compare(path, want string) error {
	got, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	if !bytes.Equal(got, []byte(want)) {
		return fmt.Errorf("%s is not what its .proto file generates: run make generate", path)
	}
	return nil
}
