// A function for events: `{"name": "World"}` is answered with `{"greeting": "Hello, World!"}`.
// Alibaba FC posts events to /invoke, Tencent SCF to /event-invoke.
'use strict';
const http = require('http');

const server = http.createServer(async (request, response) => {
  const parts = [];
  for await (const part of request) parts.push(part);
  const event = JSON.parse(Buffer.concat(parts));
  response.setHeader('Content-Type', 'application/json');
  response.end(JSON.stringify({ greeting: `Hello, ${event.name}!` }));
});
// The platforms keep connections, and the time limit is theirs.
server.requestTimeout = 0;
server.keepAliveTimeout = 0;
server.listen(9000, '0.0.0.0', () => console.log('ready for events'));
