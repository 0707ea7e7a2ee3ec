// Sends a request's body back, and closes connections now and then. Go's net/http.
package main

import (
	"context"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"os"
	"strconv"
	"time"
)

// A connection that is read on when it has been closed: otherwise the kernel resets it where requests wait behind the one
// that is answered last, and throws away what has not gone out of the answers.
type lingering struct{ *net.TCPConn }

func (connection lingering) Close() error {
	connection.CloseWrite()
	go func() {
		connection.SetReadDeadline(time.Now().Add(10 * time.Second))
		io.Copy(io.Discard, connection.TCPConn)
		connection.TCPConn.Close()
	}()
	return nil
}

type listening struct{ net.Listener }

func (listener listening) Accept() (net.Conn, error) {
	connection, err := listener.Listener.Accept()
	if err != nil {
		return nil, err
	}
	return lingering{connection.(*net.TCPConn)}, nil
}

// How many requests of a connection have been answered.
type served struct{ count int }

type key struct{}

func answer(writer http.ResponseWriter, request *http.Request) {
	content, err := io.ReadAll(request.Body)
	if err != nil {
		fmt.Printf("error in %s %s: %v\n", request.Method, request.URL, err)
		return
	}
	header := writer.Header()
	header.Set("X-Answered-By", "pod")
	header.Set("X-Target", request.RequestURI)
	connection := request.Context().Value(key{}).(*served)
	connection.count++
	if connection.count == 90 {
		header.Set("Connection", "close")
	}
	// Without a length it is sent in chunks.
	if len(content)%2 == 0 {
		header.Set("Content-Length", strconv.Itoa(len(content)))
	}
	if request.Method == http.MethodHead {
		return
	}
	// Each half by itself; what fails here the caller sees.
	writer.Write(content[:len(content)/2])
	writer.(http.Flusher).Flush()
	writer.Write(content[len(content)/2:])
}

func main() {
	listener, err := net.Listen("tcp", "[::]:"+os.Args[1])
	if err != nil {
		log.Fatal(err)
	}
	server := http.Server{
		Handler:  http.HandlerFunc(answer),
		ErrorLog: log.New(os.Stdout, "error ", 0),
		ConnContext: func(ctx context.Context, _ net.Conn) context.Context {
			return context.WithValue(ctx, key{}, &served{})
		},
	}
	fmt.Println("listening")
	log.Fatal(server.Serve(listening{listener}))
}
