// With the values of the form, the folder and the dataset that it held before these: whose list of images it has.
(_, ...entered) => {
  const before = window.sdxlLoraBefore ?? null;
  window.sdxlLoraBefore = { folder: entered[FOLDER_AT], dataset: entered[DATASET_AT] };
  return [JSON.stringify(before), ...entered];
}
