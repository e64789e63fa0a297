// The scenario of the JavaScript client: CRUD, watch, apply, exec, logs, port-forward. Its one argument is a Pod that runs.

import assert from 'node:assert/strict';
import net from 'node:net';
import { createRequire } from 'node:module';
import { PassThrough } from 'node:stream';

// The client lies where hack/test-deps.sh put it, not beside this file.
const k8s = createRequire(process.env.CLIENTS + '/package.json')('@kubernetes/client-node');

const namespace = 'default';
const config = new k8s.KubeConfig();
config.loadFromDefault();
const core = config.makeApiClient(k8s.CoreV1Api);
const pod = process.argv[2];

async function status(promise) {
  try {
    await promise;
  } catch (error) {
    return error.code;
  }
  return 200;
}

async function crud() {
  const made = await core.createNamespacedConfigMap({ namespace, body: { metadata: { name: 'node' }, data: { k: '1' } } });
  assert.ok(made.metadata.uid);
  const read = await core.readNamespacedConfigMap({ namespace, name: 'node' });
  assert.deepEqual(read.data, { k: '1' });
  read.data = { k: '2' };
  const replaced = await core.replaceNamespacedConfigMap({ namespace, name: 'node', body: read });
  assert.deepEqual(replaced.data, { k: '2' });
  const patch = k8s.setHeaderOptions('Content-Type', k8s.PatchStrategy.StrategicMergePatch);
  const patched = await core.patchNamespacedConfigMap({ namespace, name: 'node', body: { data: { l: '3' } } }, patch);
  assert.deepEqual(patched.data, { k: '2', l: '3' });
  const list = await core.listNamespacedConfigMap({ namespace });
  assert.ok(list.items.some((m) => m.metadata.name === 'node'));
  await core.deleteNamespacedConfigMap({ namespace, name: 'node' });
  assert.equal(await status(core.readNamespacedConfigMap({ namespace, name: 'node' })), 404);
}

async function watched() {
  const seen = new Set();
  let done;
  const all = new Promise((resolve) => (done = resolve));
  const watch = await new k8s.Watch(config).watch(
    `/api/v1/namespaces/${namespace}/configmaps`,
    {},
    async (type, object) => {
      if (object.metadata.name !== 'node-watched') return;
      seen.add(type);
      if (type === 'ADDED') await core.deleteNamespacedConfigMap({ namespace, name: 'node-watched' });
      if (type === 'DELETED') done();
    },
    (error) => { if (error && error.name !== 'AbortError') throw error; },
  );
  await core.createNamespacedConfigMap({ namespace, body: { metadata: { name: 'node-watched' } } });
  await all;
  assert.deepEqual([...seen], ['ADDED', 'DELETED']);
  watch.abort();
}

async function applied() {
  const apply = (fieldManager, value, force) => {
    const body = { apiVersion: 'v1', kind: 'ConfigMap', metadata: { name: 'node-applied' }, data: { k: value } };
    const options = k8s.setHeaderOptions('Content-Type', k8s.PatchStrategy.ServerSideApply);
    return core.patchNamespacedConfigMap({ namespace, name: 'node-applied', body, fieldManager, force }, options);
  };
  await apply('one', '1', false);
  assert.equal(await status(apply('two', '2', false)), 409);
  const won = await apply('two', '2', true);
  assert.deepEqual(won.data, { k: '2' });
  await core.deleteNamespacedConfigMap({ namespace, name: 'node-applied' });
}

function gathered(stream) {
  const chunks = [];
  stream.on('data', (chunk) => chunks.push(chunk));
  return () => Buffer.concat(chunks).toString();
}

async function executed() {
  const [input, output, errors] = [new PassThrough(), new PassThrough(), new PassThrough()];
  const [said, complained] = [gathered(output), gathered(errors)];
  const command = ['sh', '-c', 'read line; echo got $line; echo wrong >&2; exit 3'];
  const result = new Promise((resolve, reject) => {
    const ended = (status) => resolve(status);
    new k8s.Exec(config).exec(namespace, pod, '', command, output, errors, input, false, ended).catch(reject);
  });
  input.write('word\n');
  const status = await result;
  assert.equal(status.details.causes[0].message, '3');
  assert.equal(said(), 'got word\n');
  assert.equal(complained(), 'wrong\n');
}

async function logged() {
  const text = await core.readNamespacedPodLog({ namespace, name: pod, tailLines: 1 });
  assert.equal(text, 'ready\n');
  const output = new PassThrough();
  const first = new Promise((resolve) => output.once('data', resolve));
  const follow = await new k8s.Log(config).log(namespace, pod, '', output, { follow: true });
  assert.equal((await first).toString(), 'ready\n');
  follow.abort();
}

async function forwarded() {
  const forward = new k8s.PortForward(config);
  const server = net.createServer((socket) => forward.portForward(namespace, pod, [8080], socket, null, socket));
  await new Promise((resolve) => server.listen(0, '127.0.0.1', resolve));
  const answer = await new Promise((resolve, reject) => {
    const socket = net.connect(server.address().port, '127.0.0.1');
    let text = '';
    socket.on('data', (chunk) => {
      text += chunk;
      if (text.endsWith('hello\n')) { resolve(text); socket.destroy(); }
    });
    socket.on('error', reject);
    socket.write('GET / HTTP/1.0\r\n\r\n');
  });
  assert.match(answer, /hello\n$/);
  server.close();
}

for (const step of [crud, watched, applied, executed, logged, forwarded]) await step();
console.log('node: all passed');
process.exit(0);
