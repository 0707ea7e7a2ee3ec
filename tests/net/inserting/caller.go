// Calls with Go's net/http over a pool of connections that are kept alive, and checks each answer.
//
// Arguments: the server's address, how many requests, by how many goroutines, one in how many fits. Its last line says how
// many did; its exit status is 0 if every answer was right.
package main

import (
	"bytes"
	"fmt"
	"io"
	"math/rand"
	"net/http"
	"net/http/httptrace"
	"os"
	"strconv"
	"sync"
	"sync/atomic"
	"time"
)

// Longest that a request may take.
const limit = 60 * time.Second

var sizes = []int{1, 100, 100, 2000, 2000, 20000, 20000, 200000}
var methods = []string{"GET", "GET", "POST", "POST", "PUT", "PATCH", "DELETE", "HEAD"}

// Values of the header that the rule is about; it names the first. The empty one stands for none.
var values = []string{"adam", "bertil", "Adam", "adam2", "ada", ""}

// One request and its answer.
func ask(client *http.Client, to string, number int, fits bool, random *rand.Rand) error {
	method := methods[random.Intn(len(methods))]
	size := random.Intn(sizes[random.Intn(len(sizes))])
	if method == "GET" || method == "HEAD" || method == "DELETE" {
		size = 0
	}
	content := make([]byte, size)
	random.Read(content)
	target := fmt.Sprintf("/%d", number)
	var body io.Reader
	if size > 0 {
		body = bytes.NewReader(content)
	}
	request, err := http.NewRequest(method, "http://"+to+target, body)
	if err != nil {
		return err
	}
	if size > 0 && random.Intn(2) == 0 {
		// Sent in chunks.
		request.ContentLength = -1
	}
	if size > 0 && random.Intn(8) == 0 {
		request.Header.Set("Expect", "100-continue")
	}
	by, value := "pod", values[1+random.Intn(len(values)-1)]
	if fits {
		by, value = "laptop", values[0]
	}
	if value != "" {
		request.Header.Set("X-User", value)
	}
	// net/http asks again, over another connection, where one breaks: here that is a failure.
	connections := 0
	trace := &httptrace.ClientTrace{GotConn: func(httptrace.GotConnInfo) { connections++ }}
	request = request.WithContext(httptrace.WithClientTrace(request.Context(), trace))
	what := fmt.Sprintf("%s %s with %d bytes", method, target, size)
	response, err := client.Do(request)
	if err != nil {
		return fmt.Errorf("%s: %w", what, err)
	}
	defer response.Body.Close()
	got, err := io.ReadAll(response.Body)
	switch seen := response.Header.Get("X-Answered-By"); {
	case err != nil:
		return fmt.Errorf("%s: %w", what, err)
	case connections != 1:
		return fmt.Errorf("%s: it was sent %d times", what, connections)
	case response.StatusCode != 200:
		return fmt.Errorf("%s: status %s", what, response.Status)
	case seen != by:
		return fmt.Errorf("%s: by %q instead of %q", what, seen, by)
	case response.Header.Get("X-Target") != target:
		return fmt.Errorf("%s: the answer to another request, %s", what, response.Header.Get("X-Target"))
	case method != "HEAD" && !bytes.Equal(got, content):
		return fmt.Errorf("%s: %d bytes that are not those", what, len(got))
	}
	return nil
}

func main() {
	var numbers [3]int
	for at := range numbers {
		number, err := strconv.Atoi(os.Args[2+at])
		if err != nil {
			fmt.Println(err)
			os.Exit(2)
		}
		numbers[at] = number
	}
	to, requests, callers, fitsOnceIn := os.Args[1], numbers[0], numbers[1], numbers[2]
	client := &http.Client{Timeout: limit, Transport: &http.Transport{
		MaxIdleConnsPerHost:   callers,
		ExpectContinueTimeout: limit,
		DisableCompression:    true,
	}}
	var next, taken, failed int64
	var all sync.WaitGroup
	for caller := 0; caller < callers; caller++ {
		all.Add(1)
		go func(seed int64) {
			defer all.Done()
			random := rand.New(rand.NewSource(seed))
			for {
				number := int(atomic.AddInt64(&next, 1))
				if number > requests {
					return
				}
				fits := random.Intn(fitsOnceIn) == 0
				if fits {
					atomic.AddInt64(&taken, 1)
				}
				if err := ask(client, to, number, fits, random); err != nil {
					fmt.Println("failed:", err)
					atomic.AddInt64(&failed, 1)
				}
			}
		}(int64(caller))
	}
	all.Wait()
	fmt.Println("taken", taken)
	if failed > 0 {
		os.Exit(1)
	}
}
