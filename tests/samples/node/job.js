// A job: no server, one container for each event, which is in its environment. The exit code tells how it went.
'use strict';
const event = process.env.FC_CUSTOM_CONTAINER_EVENT || process.env.SCF_CUSTOM_CONTAINER_EVENT;
const { numbers } = JSON.parse(event);
if (numbers.length === 0) {
  console.error('no numbers to add');
  process.exit(1);
}
console.log('the sum is', numbers.reduce((sum, number) => sum + number));
