// Calls a function through one of the vendors' official SDKs and prints what each call came to, as JSON.
//
// call.js SDK HOST:PORT FUNCTION KEY_ID KEY_SECRET LARGE
//
// As call.py.
'use strict';

const { Readable } = require('stream');

const [sdk, endpoint, name, keyId, keySecret, large] = process.argv.slice(2);
const cases = ['success', 'function_error', 'unknown_function', 'too_large', 'asynchronous', 'timeout'];
const service = 'default';

function event(which) {
  if (which === 'too_large') return JSON.stringify({ x: 'x'.repeat(Number(large)) });
  const special = { function_error: { fail: true }, timeout: { sleep_ms: 60000 } };
  return JSON.stringify(special[which] || { case: which });
}

const called = (which) => (which === 'unknown_function' ? 'no-such' : name);

/** @alicloud/fc, the first one, API 2016-08-15. It takes no endpoint, and has functions invoked by their path alone. */
function fc() {
  const Client = require('@alicloud/fc');
  const options = { region: 'cn-hangzhou', accessKeyID: keyId, accessKeySecret: keySecret, timeout: 60000 };
  const client = new Client('1234567890123456', options);
  Object.assign(client, { endpoint: `http://${endpoint}`, host: endpoint });
  return {
    async call(which) {
      const path = `/services/${service}/functions/${called(which)}/invocations`;
      const headers = which === 'asynchronous' ? { 'x-fc-invocation-type': 'Async' } : {};
      try {
        const answer = await client.post(path, event(which), headers);
        return { body: typeof answer === 'string' ? answer : JSON.stringify(answer) };
      } catch (error) {
        return { error: error.code || error.name, message: error.message };
      }
    },
  };
}

/** @alicloud/fc2, API 2016-08-15. */
function fc2() {
  const Client = require('@alicloud/fc2');
  const options = { endpoint: `http://${endpoint}`, region: 'cn-hangzhou', accessKeyID: keyId, accessKeySecret: keySecret };
  const client = new Client('1234567890123456', { ...options, timeout: 60000 });
  return {
    async call(which) {
      const headers = which === 'asynchronous' ? { 'x-fc-invocation-type': 'Async' } : { 'x-fc-log-type': 'Tail' };
      try {
        const answer = await client.invokeFunction(service, called(which), event(which), headers);
        const body = typeof answer.data === 'string' ? answer.data : JSON.stringify(answer.data);
        return { body, headers: answer.headers };
      } catch (error) {
        return { error: error.code || error.name, message: error.message };
      }
    },
    async other() {
      const answer = await client.get(`/proxy/${service}/${name}/request`, { a: '1', b: '2 3' });
      return { body: JSON.stringify(answer.data), status: 200 };
    },
  };
}

/** @alicloud/fc20230330. */
function fc20230330() {
  const fc = require('@alicloud/fc20230330');
  const { $OpenApiUtil } = require('@alicloud/openapi-core');
  const { RuntimeOptions } = require('@darabonba/typescript');
  const Client = fc.default;
  const client = new Client(
    new $OpenApiUtil.Config({ accessKeyId: keyId, accessKeySecret: keySecret, endpoint, protocol: 'http' }),
  );
  return {
    async call(which) {
      const request = new fc.InvokeFunctionRequest({ body: Readable.from([Buffer.from(event(which))]) });
      const headers = new fc.InvokeFunctionHeaders({
        xFcInvocationType: which === 'asynchronous' ? 'Async' : 'Sync',
        xFcLogType: 'Tail',
      });
      const options = new RuntimeOptions({ readTimeout: 60000, autoretry: false });
      try {
        const answer = await client.invokeFunctionWithOptions(called(which), request, headers, options);
        const chunks = [];
        for await (const chunk of answer.body || []) chunks.push(chunk);
        return { body: Buffer.concat(chunks).toString(), headers: answer.headers, status: answer.statusCode };
      } catch (error) {
        const status = error.statusCode || (error.data && error.data.statusCode);
        return { error: error.code, message: error.message, status };
      }
    },
  };
}

// Whom and how Tencent's SDKs call.
const HTTP = { protocol: 'http://', endpoint, reqTimeout: 60 };

/** The client of tencentcloud-sdk-nodejs-scf, or of tencentcloud-sdk-nodejs. */
function tencent(library) {
  const { scf: products } = require(library);
  return new products.v20180416.Client({
    credential: { secretId: keyId, secretKey: keySecret },
    region: 'ap-guangzhou',
    profile: { httpProfile: HTTP },
  });
}

/** That of tencentcloud-sdk-nodejs-intl-en, which takes objects of its own and calls back, in the form of the others. */
function tencentIntl() {
  const { common, scf: products } = require('tencentcloud-sdk-nodejs-intl-en');
  const { Client, Models } = products.v20180416;
  // The signature of all the others is not its own choice.
  const profile = new common.ClientProfile('TC3-HMAC-SHA256', Object.assign(new common.HttpProfile(), HTTP));
  const client = new Client(new common.Credential(keyId, keySecret), 'ap-guangzhou', profile);
  const call = (action) => (parameters) => {
    const request = new Models[`${action}Request`]();
    request.from_json_string(JSON.stringify(parameters));
    return new Promise((resolve, reject) => {
      client[action](request, (error, answer) => (error ? reject(error) : resolve(answer)));
    });
  };
  return new Proxy({}, { get: (_, action) => call(action) });
}

/** Tencent's SDKs. */
function scf(client) {
  const whole = async (call) => {
    try {
      return await call();
    } catch (error) {
      return { error: error.code, message: error.message };
    }
  };
  const answered = async (call) => {
    const answer = await whole(call);
    return answer.error ? answer : answer.Result;
  };
  const ask = (action, parameters) => whole(() => client[action](parameters));
  // The status of an asynchronous event when it runs no more.
  const ended = async (request) => {
    for (const until = Date.now() + 20000; ; ) {
      const answer = await ask('GetAsyncEventStatus', { InvokeRequestId: request });
      if (answer.error || answer.Result.Status !== 'RUNNING' || Date.now() > until) return answer;
      await new Promise((resolve) => setTimeout(resolve, 50));
    }
  };
  return {
    call: (which) =>
      answered(() =>
        client.Invoke({
          FunctionName: called(which),
          ClientContext: event(which),
          LogType: 'Tail',
          InvocationType: which === 'asynchronous' ? 'Event' : 'RequestResponse',
        }),
      ),
    other: () => answered(() => client.InvokeFunction({ FunctionName: name, Event: event('invoke_function') })),
    // What has become of the calls, and the end of one.
    async after(outcomes) {
      const later = { FunctionName: name, ClientContext: event('timeout'), InvocationType: 'Event' };
      const doomed = (await answered(() => client.Invoke(later))).FunctionRequestId;
      const end = { FunctionName: name, InvokeRequestId: doomed };
      const succeeded = outcomes.success.FunctionRequestId;
      return {
        doomed,
        request: await ask('GetRequestStatus', { FunctionName: name, FunctionRequestId: succeeded }),
        asynchronous: await ended(outcomes.asynchronous.FunctionRequestId),
        running: await ask('GetAsyncEventStatus', { InvokeRequestId: doomed }),
        terminate: await ask('TerminateAsyncEvent', end),
        terminated: await ended(doomed),
        again: await ask('TerminateAsyncEvent', end),
        unknown: await ask('GetAsyncEventStatus', { InvokeRequestId: 'no-such' }),
        list: await ask('ListAsyncEvents', { FunctionName: name, Order: 'ASC' }),
        aborted: await ask('ListAsyncEvents', { FunctionName: name, Status: ['ABORTED'] }),
        logs: await ask('GetFunctionLogs', { FunctionName: name }),
      };
    },
  };
}

const sdks = {
  fc,
  fc2,
  fc20230330,
  scf: () => scf(tencent('tencentcloud-sdk-nodejs-scf')),
  all: () => scf(tencent('tencentcloud-sdk-nodejs')),
  intl: () => scf(tencentIntl()),
};

async function main() {
  const client = sdks[sdk]();
  const outcomes = {};
  if (client.other) outcomes.other = await client.other();
  for (const which of cases) outcomes[which] = await client.call(which);
  if (client.after) outcomes.status = await client.after(outcomes);
  process.stdout.write(JSON.stringify(outcomes));
}

main().catch((error) => {
  console.error(error);
  process.exit(1);
});
