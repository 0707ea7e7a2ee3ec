const server = require('http').createServer((request, response) => {
  const parts = [];
  request.on('data', (part) => parts.push(part));
  request.on('end', () => {
    const content = Buffer.concat(parts);
    response.setHeader('X-Answered-By', 'pod');
    response.setHeader('X-Target', request.url);
    // Without a length it is sent in chunks.
    if (content.length % 2 === 0) response.setHeader('Content-Length', content.length);
    if (request.method !== 'HEAD') response.write(content.subarray(0, content.length / 2));
    response.end(request.method === 'HEAD' ? undefined : content.subarray(content.length / 2));
  });
});
server.maxRequestsPerSocket = 80;
// A caller that has been told to close leaves unread what answers came behind that, which resets the connection: with
// and without anybody in between.
server.on('clientError', (error) => error.code === 'ECONNRESET' || console.log(`error ${error}`));
server.listen(Number(process.argv[1]), '::', () => console.log('listening'));
